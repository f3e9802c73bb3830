"""The benchmark's plots. Each draws to a PNG file and returns whether there was anything to draw.

Three are drawn from the report alone, so that anyone who has it can draw them again.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from .metrics import calibration_by_speaker, calibration_error_of
from .predictions import SUFFIXES, Predictions, row_without_adaptation

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")  # Okabe & Ito
MARKERS = "osD^vPX*"
MAPPED = 400  # recordings of each corpus in the map: more hide one another
DPI = 130
SPREAD = 0.3  # of the interval between two conditions, over which the models' bars stand aside of one another
PER_ROW = 4  # panels beside one another, twice as many where there are very many
FEWEST = 5  # recordings in a bin of the reliability diagram whose accuracy means something


def uar_against_snr(report: dict, path: Path) -> bool:
    """UAR over noise sources and corpora against the SNR of recorded and of Gaussian noise, clean speech beside it.

    Rows of panels are kinds of noise, columns modes of adaptation.
    """
    found = {(entry["model"], entry["over"]): entry["mean"] for entry in report.get("summaries", [])}
    kinds = {}
    for kind, title in (("noise", "recorded noise"), ("gaussian", "Gaussian noise")):
        levels = {over.removeprefix(f"{kind}: ") for _, over in found if over.startswith(f"{kind}: ") and "dB" in over}
        if levels:
            kinds[kind] = title, sorted((int(level.split()[0]) for level in levels), reverse=True)
    if not kinds:
        return False
    models = [model["name"] for model in report["models"] if (model["name"], "clean") in found]
    plain = list(dict.fromkeys(map(row_without_adaptation, models)))
    modes = [suffix for suffix in SUFFIXES.values() if any(name + suffix in models for name in plain)]
    figure = Figure(figsize=(3.4 * len(modes) + 2, 3.8 * len(kinds) + 0.4), layout="constrained")
    grid = figure.subplots(len(kinds), len(modes), sharey=True, squeeze=False)
    for axes, (kind, (title, levels)) in zip(grid, kinds.items(), strict=True):
        overs = ["clean", *(f"{kind}: {level} dB" for level in levels)]
        for axis, mode in zip(axes, modes, strict=True):
            for place, name in enumerate(plain):
                shift = (place - (len(plain) - 1) / 2) * min(0.06, SPREAD / len(plain))
                if name + mode in models:
                    _line(axis, [found.get((name + mode, over)) for over in overs], name, place, shift)
            axis.set_xticks(range(len(overs)), ["clean", *map(str, levels)])
            axis.set(title=f"{title}, {mode.removeprefix(' + ')}" if mode else title, xlabel="SNR, dB")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(f"UAR, % (95% over speakers; chance {100 / len(report['models'][0]['labels']):.0f})")
    handles = {}
    for axis in grid.ravel():
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    return _save(figure, path)


def _line(axis, means: Sequence[dict | None], name: str, place: int, shift: float) -> None:
    """One model's line; its interval bars stand `shift` aside, so that they do not hide the others'."""
    color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
    places = [at for at, mean in enumerate(means) if mean is not None]
    values = np.array([100 * means[at]["value"] for at in places])
    axis.plot(np.array(places) + shift, values, color=color, marker=marker, markersize=4, label=name)
    for at in places:
        low, high = means[at]["low"], means[at]["high"]
        if low is not None:
            axis.plot([at + shift] * 2, [100 * low, 100 * high], color=color, linewidth=1, alpha=0.6)


def cross_corpus(report: dict, path: Path) -> bool:
    """UAR of every pair of corpora as heat maps, a model each; the diagonal is within the corpus, over its folds."""
    rows = [row for row in report["results"] if row["condition"] == "clean" and row["train"]]
    if not any(row["protocol"] == "cross_corpus" for row in rows):
        return False
    models = [model["name"] for model in report["models"] if any(row["model"] == model["name"] for row in rows)]
    tests = list(dict.fromkeys(row["test"] for row in rows))
    sources = list(dict.fromkeys(row["train"][0] for row in rows if len(row["train"]) == 1))
    left_out = any(row["protocol"] == "leave_one_corpus_out" for row in rows)
    names = [*sources, "all others"] if left_out else sources
    chance = 100 / len(report["models"][0]["labels"])
    highest = 100 * max(row["metrics"]["uar"]["value"] for row in rows)
    figure, axes = _grid(len(models), width=1.1 + 0.5 * len(tests), height=0.9 + 0.4 * len(names))
    for axis, model in zip(axes, models, strict=True):
        table = np.full((len(names), len(tests)), np.nan)
        for row in rows:
            if row["model"] == model:
                source = "all others" if row["protocol"] == "leave_one_corpus_out" else row["train"][0]
                table[names.index(source), tests.index(row["test"])] = 100 * row["metrics"]["uar"]["value"]
        image = _heat_map(axis, table, names, tests, chance, max(highest, chance + 10), "{:.0f}")
        axis.set_title(model, fontsize=9)
        axis.tick_params(axis="x", rotation=35)
        if left_out:
            axis.axhline(len(sources) - 0.5, color="white", linewidth=3)
    figure.supylabel("trained on", fontsize=10)
    figure.supxlabel("tested on", fontsize=10)
    figure.colorbar(image, ax=axes, label="UAR, %", shrink=0.8)
    return _save(figure, path)


def confusion(report: dict, path: Path) -> bool:
    """Confusion matrices, rows brought to 100 %: clean speech above, the hardest recorded noise below (any without)."""
    labels = report["models"][0]["labels"]
    models = [model["name"] for model in report["models"]]
    noisy = [row for row in report["results"] if row["protocol"] == "corruption" and row["level"]]
    recorded = [row for row in noisy if row["condition"].startswith("noise_")] or noisy
    hardest = max((row["level"] for row in recorded), default=None)
    parts = {"clean": [row for row in report["results"] if row["protocol"] == "clean"]}
    if recorded:
        of_noise = any(row["condition"].startswith("noise_") for row in recorded)
        name = "recorded noise" if of_noise else "all corruptions"
        parts[f"{name}, level {hardest}"] = [row for row in recorded if row["level"] == hardest]
    if not parts["clean"]:
        return False
    panels = [(model, part, _pooled(rows, model)) for model in models for part, rows in parts.items()]
    panels = [(model, part, table) for model, part, table in panels if table is not None]
    figure, axes = _grid(len(panels), width=2.7, height=2.7)
    for axis, (model, part, table) in zip(axes, panels, strict=True):
        share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
        _heat_map(axis, share, labels, labels, 0, 100, "{:.0f}")
        axis.set_title(f"{model}\n{part}", fontsize=8)
        axis.tick_params(axis="x", rotation=35)
    figure.supxlabel("predicted", fontsize=10)
    figure.supylabel("labelled, rows add up to 100 %", fontsize=10)
    return _save(figure, path)


def reliability(cells: Sequence, path: Path) -> bool:
    """Accuracy against confidence on clean speech, uncalibrated and with temperature."""
    models = list(dict.fromkeys(cell.model for cell in cells if cell.protocol == "clean"))
    if not models:
        return False
    figure, axes = _grid(len(models), width=2.7, height=2.9)
    for axis, model in zip(axes, models, strict=True):
        own = [cell for cell in cells if cell.model == model and cell.protocol == "clean"]
        axis.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
        error = _reliability_line(axis, [cell.predictions for cell in own], COLORS[1], "uncalibrated")
        title = f"{model}\nECE {error:.1f} %"
        if all(cell.temperatures is not None for cell in own):
            scaled = [cell.predictions.calibrated(cell.temperatures) for cell in own]
            error = _reliability_line(axis, scaled, COLORS[0], "with temperature")
            title += f", with temperature {error:.1f} %"
        axis.set(xlim=(0.2, 1.02), ylim=(0, 1.02), xticks=np.arange(0.2, 1.01, 0.2))
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    figure.supxlabel(f"confidence; a bin of fewer than {FEWEST} recordings is not drawn", fontsize=9)
    figure.supylabel("accuracy", fontsize=10)
    return _save(figure, path)


def _reliability_line(axis, parts: Sequence[Predictions], color: str, label: str) -> float:
    """Draws one; returns its calibration error in percent."""
    joined = Predictions.joined(parts)
    counts, _ = calibration_by_speaker(joined.references, joined.probabilities, np.zeros(len(joined)))
    recordings, correct, confidence = counts[0].T
    filled = recordings >= FEWEST
    x, y = confidence[filled] / recordings[filled], correct[filled] / recordings[filled]
    axis.plot(x, y, color=color, linewidth=1, label=label)
    axis.scatter(x, y, s=4 + 120 * recordings[filled] / recordings.sum(), color=color, alpha=0.7, linewidths=0)
    return float(100 * calibration_error_of(counts[0]))


def embedding_map(
    vectors: np.ndarray, emotions: np.ndarray, corpora: np.ndarray, what: str, path: Path, seed: int = 0
) -> bool:
    """t-SNE (van der Maaten & Hinton 2008) of embeddings (N, S), once colored by emotion and once by corpus."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(corpora == name))[:MAPPED] for name in dict.fromkeys(corpora.tolist())]
    rows = np.concatenate(chosen)
    if len(rows) < 8:
        return False
    vectors = vectors[rows].astype(np.float64)
    vectors = (vectors - vectors.mean(0)) / np.maximum(vectors.std(0), 1e-6)
    reduced = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
    perplexity = min(30, (len(rows) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    for axis, groups, title in zip(
        figure.subplots(1, 2), (emotions[rows], corpora[rows]), ("by emotion", "by corpus"), strict=True
    ):
        names = list(dict.fromkeys(sorted(groups.tolist())))
        order = rng.permutation(len(rows))  # no group lies on top of the others
        colors = np.array([COLORS[names.index(group) % len(COLORS)] for group in groups])
        axis.scatter(*points[order].T, c=colors[order], s=9, alpha=0.75, linewidths=0)
        handles = [
            Line2D([], [], marker="o", linestyle="", color=COLORS[place % len(COLORS)], label=name)
            for place, name in enumerate(names)
        ]
        axis.legend(handles=handles, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False)
        axis.set(title=title, xticks=[], yticks=[])
    figure.suptitle(f"t-SNE of {len(rows)} recordings; {what}", fontsize=10)
    return _save(figure, path)


# --- how ----------------------------------------------------------------------------------------------


def _grid(count: int, width: float, height: float):
    """A figure of `count` panels; sizes in inches a panel."""
    columns = min(count, PER_ROW if count <= 4 * PER_ROW else 2 * PER_ROW)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns + 1.0, height * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.remove()
    return figure, list(axes[:count])


def _heat_map(axis, table: np.ndarray, rows: Sequence[str], columns: Sequence[str], low: float, high: float, form: str):
    image = axis.imshow(table, vmin=low, vmax=high, cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    for (line, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            color = "w" if (value - low) / (high - low) < 0.6 else "k"
            axis.text(column, line, form.format(value), ha="center", va="center", fontsize=8, color=color)
    return image


def _pooled(rows: Sequence[dict], model: str) -> np.ndarray | None:
    tables = [row["confusion"] for row in rows if row["model"] == model]
    return np.sum(tables, axis=0) if tables else None


def _save(figure: Figure, path: Path) -> bool:
    figure.savefig(path, dpi=DPI)
    return True
