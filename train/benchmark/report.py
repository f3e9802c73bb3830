"""From a benchmark's cells to its report and plots."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from train.degradation.sources import impulse_response_files, noise_files
from train.evaluation import plots as report_plots
from train.evaluation.predictions import SUFFIXES, row_without_adaptation
from train.evaluation.report import corpus_entries, model_entry, new_report, result_row

from .comparisons import comparisons, corruption_errors, summaries
from .contenders import Contender
from .runner import Benchmark, Cell

logger = logging.getLogger(__name__)


def make_report(
    benchmark: Benchmark,
    contenders: Sequence[Contender],
    cells: Sequence[Cell],
    *,
    command: str,
    seed: int,
    baseline: str,
    noise_dir=None,
    rir_dir=None,
) -> dict:
    """Everything but the plots and the duration. `baseline`: what comparisons and corruption errors are against."""
    labels = {contender.name: contender.classes for contender in contenders}
    rows = []
    for cell in tqdm(cells, desc="intervals", unit="row", disable=len(cells) < 50):
        rows.append(
            result_row(
                cell.model,
                labels[row_without_adaptation(cell.model)],
                cell.predictions,
                test=cell.test,
                train=cell.train,
                protocol=cell.protocol,
                condition=cell.condition,
                level=cell.level,
                setting=cell.setting,
                temperature=cell.temperatures,
                scales=benchmark.scales,
                **({"folds": cell.folds} if cell.folds else {}),
            )
        )
    return new_report(
        command,
        seed=seed,
        models=[entry for contender in contenders for entry in _model_entries(contender, cells)],
        results=rows,
        corpora=corpus_entries(*benchmark.corpora.values()),
        data=benchmark.data,
        noise=_noise(benchmark, noise_dir, rir_dir),
        summaries=summaries(cells),
        comparisons=comparisons(cells, baseline),
        corruption_errors=corruption_errors(cells, baseline),
        errors=benchmark.errors,
    )


def add_plots(
    report: dict, benchmark: Benchmark, cells: Sequence[Cell], contenders: Sequence[Contender], folder: Path
) -> None:
    """Draws what the cells allow into the folder, and names the files in `report["plots"]`."""
    draw = {
        "uar_against_snr": lambda path: report_plots.uar_against_snr(report, path),
        "cross_corpus": lambda path: report_plots.cross_corpus(report, path),
        "confusion": lambda path: report_plots.confusion(report, path),
        "reliability": lambda path: report_plots.reliability(cells, path),
        "embedding_map": lambda path: report_plots.embedding_map(*_embeddings(benchmark, contenders), path),
    }
    for name, act in tqdm(draw.items(), desc="plots", unit="plot"):
        if act(folder / f"{name}.png"):
            report["plots"][name] = f"{name}.png"


def _model_entries(contender: Contender, cells: Sequence[Cell]) -> list[dict]:
    entries = []
    for name in (contender.name + suffix for suffix in SUFFIXES.values()):
        own = [cell for cell in cells if cell.model == name]
        if not own and name != contender.name:
            continue
        found = [cell.temperatures for cell in own if cell.temperatures is not None and cell.protocol == "clean"]
        entries.append(
            model_entry(
                name,
                contender.classes,
                source=contender.source,
                folder=contender.folder,
                parameters=contender.parameters,
                temperature=float(np.exp(np.log(np.concatenate(found)).mean())) if found else None,
                fitted_on=contender.temperature_fitted_on,
                adapted=name != contender.name,
                **({} if contender.given_settings is None else {"settings": contender.given_settings}),
            )
        )
    return entries


def _noise(benchmark: Benchmark, noise_dir, rir_dir) -> dict:
    """Which recordings serve in training and which in testing; ValueError where they share one."""
    folders = {"noise": (noise_dir, noise_files), "rooms": (rir_dir, impulse_response_files)}
    found: dict = {"augmentation": benchmark.augmentation.describe() if benchmark.augmentation else None}
    for kind, (folder, list_files) in folders.items():
        if folder is None:
            continue
        parts = {
            part: [str(path.relative_to(folder)) for path in list_files(folder, part)]
            for part in ("training", "testing")
        }
        shared = set(parts["training"]) & set(parts["testing"])
        if shared:
            raise ValueError(f"{folder}: {', '.join(sorted(shared))} would serve in training and in testing.")
        found[kind] = {part: {"count": len(names), "files": names} for part, names in parts.items()}
    return found


def _embeddings(benchmark: Benchmark, contenders: Sequence[Contender]):
    """Clean speech by the first contender: vectors (N, S), emotions (N,), corpora (N,), and what the vectors are."""
    contender = contenders[0]
    vectors, emotions, corpora = [], [], []
    for name, dataset in benchmark.corpora.items():
        if (name, "clean") in benchmark.failed:
            continue
        audio = list(dataset["audio"])
        vectors.append(contender.cache.embed(audio, title=name).flatten(1).numpy())
        emotions += [contender.classes[label] for label in dataset["label"]]
        corpora += [name] * len(audio)
    return np.concatenate(vectors), np.array(emotions), np.array(corpora), contender.embedding_name
