"""When a model should say "nobody speaks" or "one of these": what the speech gate lets through, and what the sets of
`model.predict(…, coverage=0.9)` hold, on corpora that were left out of training.

    python scripts/benchmark_rejection.py --corpus emodb=DIR --corpus ravdess=DIR --corpus nemo=DIR --corpus ased=DIR \\
        --noise DIR --recipe train/configs/compact.yaml --max_recordings 300 --output OUT \\
        [--sounds DIR | --calibrate MODEL]

Prints tables, and writes them to OUT/rejection.md and .json, with rejection.png (error by share of recordings answered)
and timeline.png (speech, noise, speech). `--sounds`: further sounds without speech to try the gate on, such as music,
in a sub-folder each; no model learns from them. `--calibrate` gives the config of a trained MODEL, a folder, the
thresholds that training by this version would store.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from modeling_edrl_mea import EdrlMeaForAudioClassification, SpeechGate, load_recording  # noqa: E402
from modeling_edrl_mea.adaptation import evidence_of  # noqa: E402
from modeling_edrl_mea.correction import softmax  # noqa: E402
from modeling_edrl_mea.recordings import find_audio  # noqa: E402
from modeling_edrl_mea.timeline_stream import HOP_SECONDS, WINDOW_SECONDS  # noqa: E402
from train.benchmark.adaptation_study import LeftOut, Study, argument_parser, print_tables, settings_of  # noqa: E402
from train.data.embeddings import fingerprint_of  # noqa: E402
from train.data.files import write_json  # noqa: E402
from train.evaluation.calibration import coverage_thresholds, fit_temperature  # noqa: E402
from train.evaluation.metrics import expected_calibration_error  # noqa: E402
from train.evaluation.predictions import predict  # noqa: E402
from train.evaluation.unseen_corpora import right_on_left_out, thresholds_of  # noqa: E402

RATE = 16_000
LEVELS_DB = range(-80, -5, 10)  # of white noise
SOUND_SECONDS = 10  # of made silence and noise
GATED = 100  # recordings of each corpus whose windows are counted
COVERAGE = "0.9"


# --- the speech gate ---


def windows(waveform: np.ndarray) -> list[np.ndarray]:
    """As `predict_timeline` cuts them by default."""
    window, hop = int(WINDOW_SECONDS * RATE), int(HOP_SECONDS * RATE)
    starts = [*range(0, max(len(waveform) - window, 0) + 1, hop)]
    if starts[-1] + window < len(waveform):
        starts.append(len(waveform) - window)
    return [waveform[start : start + window] for start in starts]


def sounds_without_speech(folders: list[str]) -> dict[str, list[np.ndarray]]:
    generator, length = np.random.default_rng(0), SOUND_SECONDS * RATE
    found = {
        "digital silence and dither": [np.zeros(length), generator.integers(-1, 2, length) / 2**15],
        "white noise": [10 ** (level / 20) * generator.standard_normal(length) for level in LEVELS_DB],
    }
    by_folder: dict[str, list] = {}
    for folder in folders:
        for path in find_audio(folder):
            by_folder.setdefault(path.relative_to(folder).parts[0], []).append(load_recording(path))
    return found | by_folder


def table_of_gates(study: Study, noise: str, sounds: str | None) -> list[list]:
    """Windows that get an emotion."""
    from train.degradation.corruptions import corruptions

    sets = sounds_without_speech([noise, sounds] if sounds else [noise])
    noisy = [one for one in corruptions(noise, None, levels=(2, 3)) if one.name == study.noise.name]
    for name, corpus in study.corpora.items():
        files = list(corpus["audio"])[:: max(1, len(corpus) // GATED)]
        spoken = [load_recording(file) for file in files]
        sets[f"speech: {name}"] = spoken
        for corruption in noisy:
            decibels = corruption.setting.get("snr_db", f"level {corruption.level}")
            sets[f"speech: {name}, noise at {decibels} dB"] = [corruption(one, str(i)) for i, one in enumerate(spoken)]
    kinds = ["silero", "energy"]
    rows = [["windows that get an emotion, %", "windows", *kinds]]
    gates = [SpeechGate(kind) for kind in kinds]
    for name, sounds in sets.items():
        cuts = [cut for sound in sounds for cut in windows(np.asarray(sound, np.float32))]
        named = [np.mean([gate.share(cut) > 0 for cut in cuts]) for gate in gates]
        rows.append([name, len(cuts), *(f"{100 * share:.1f}" for share in named)])
    return rows


# --- sets, on corpora left out ---


class CalibratedStudy(Study):
    """Models at the temperature that their held-out speakers give them."""

    def model(self, names: frozenset):
        is_new = names not in self.models
        model = super().model(names)
        if is_new:
            held_out = self.validation(names)
            model.set_temperature(fit_temperature(held_out.labels.numpy(), predict(model, held_out), held_out.speakers))
        return model

    def training(self, names: frozenset):
        return self.data.embeddings(self.trial(names).train, self.recipe.noisy_copies)

    def validation(self, names: frozenset):
        return self.data.embeddings(self.trial(names).validation)

    def thresholds(self, test: str) -> dict[str, float]:
        """By what is held out, of a model that never saw the corpus."""
        names = self.others(test)
        model, train, validation = self.model(names), self.training(names), self.validation(names)
        without_corpora = replace(train, corpora=[""] * len(train))
        found = {"held-out speakers": without_corpora, "and left-out corpora": train}
        return {name: thresholds_of(model, data, validation)[COVERAGE] for name, data in found.items()}


def probabilities(left_out: LeftOut, adapted: bool) -> np.ndarray:
    logits = left_out.adapted(left_out.every, settings_of(left_out.model.config)) if adapted else left_out.logits
    return softmax(logits)


def table_of_sets(study: CalibratedStudy) -> list[list]:
    """How many sets hold the right label, and how many labels are in them."""
    figures = []
    for test, left_out in study.tests().items():
        thresholds = study.thresholds(test)
        found = {adapted: probabilities(left_out, adapted) for adapted in (False, True)}
        cells = [held(one, left_out.ids, bound) for bound in thresholds.values() for one in found.values()]
        cells.append([100 * expected_calibration_error(left_out.ids, one) for one in found.values()])
        figures.append(cells)
    rows = [
        [test, *("{:.1f} / {:.2f}".format(*cell) for cell in cells[:-1]), "{:.1f} / {:.1f}".format(*cells[-1])]
        for test, cells in zip((*study.corpora, "mean"), (*figures, np.mean(figures, axis=0)), strict=True)
    ]
    ways = [f"{name}, {state}" for name in thresholds for state in ("as it is", "adapted")]
    return [["left out", *ways, "calibration error: as it is / adapted"], *rows]


def held(probabilities: np.ndarray, ids: np.ndarray, threshold: float) -> tuple[float, float]:
    """(% of the sets that hold the right label, labels in a set)."""
    chosen = probabilities >= threshold
    return 100 * float(chosen[np.arange(len(ids)), ids].mean()), float(chosen.sum(1).mean())


def table_of_warnings(study: CalibratedStudy) -> list[list]:
    """What tells wrong answers, and recordings of another corpus: area under the ROC curve, means over corpora."""
    from sklearn.covariance import LedoitWolf
    from sklearn.metrics import roc_auc_score

    found = []
    for test, left_out in study.tests().items():
        names = study.others(test)
        known = study.training(names), study.validation(names)
        trained, held_out = (evidence_of(left_out.model, data.layer_statistics) for data in known)
        near = LedoitWolf().fit(trained.embedding)
        signs = {
            "1 − confidence": lambda one: 1 - softmax(one.logits).max(1),
            "Mahalanobis distance from the training data": lambda one, near=near: near.mahalanobis(one.embedding),
        }
        is_wrong = left_out.logits.argmax(1) != left_out.ids
        is_elsewhere = np.repeat([0, 1], [len(held_out.logits), len(left_out.ids)])
        areas = []
        for sign in signs.values():
            told, of_others = sign(left_out.evidence), sign(held_out)
            both = np.concatenate([of_others, told])
            areas.append((roc_auc_score(is_wrong, told), roc_auc_score(is_elsewhere, both)))
        found.append(areas)
    means = np.mean(found, axis=0)
    rows = [[name, *(f"{area:.2f}" for area in row)] for name, row in zip(signs, means, strict=True)]
    return [["sign", "wrong answers on a left-out corpus", "left-out corpus against held-out speakers"], *rows]


# --- pictures ---


def plot_risk(study: CalibratedStudy, path: Path) -> None:
    """Error among the recordings of which a model is surest, mean over the corpora left out."""
    from matplotlib.figure import Figure

    shares = np.linspace(0.05, 1, 20)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, condition, style in (("clean", None, "-"), ("noise at 0 dB", study.noise, "--")):
        tests = study.tests(condition).values()
        for adapted, color in ((False, "C0"), (True, "C1")):
            risks = np.mean(
                [risk(probabilities(left_out, adapted), left_out.ids, shares) for left_out in tests], axis=0
            )
            axes.plot(100 * shares, risks, style, color=color, label=f"{name}, {'adapted' if adapted else 'as it is'}")
    axes.set(xlabel="recordings answered, the surest first, %", ylabel="wrong answers, %", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def risk(probabilities: np.ndarray, ids: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """% of wrong answers among these shares of the recordings."""
    order = np.argsort(-probabilities.max(1), kind="stable")
    wrong = np.cumsum((probabilities.argmax(1) != ids)[order]) / np.arange(1, len(ids) + 1)
    return 100 * wrong[np.maximum(np.round(shares * len(ids)).astype(int), 1) - 1]


def plot_timeline(study: CalibratedStudy, noise: str, path: Path) -> None:
    """Some speech, noise and silence, and speech again, by a model that knows neither."""
    test, left_out = next(iter(study.tests().items()))
    files = [study.corpora[test]["audio"][row] for row in np.linspace(0, len(left_out.ids) - 1, 6).astype(int)]
    spoken = [load_recording(file) for file in files]
    sounds = [load_recording(file)[: 4 * RATE] for file in find_audio(noise)[::40][:3]]
    call = np.concatenate([*spoken[:3], *sounds, np.zeros(2 * RATE, np.float32), *spoken[3:]])
    left_out.model.predict_timeline(call, RATE, window_s=2, hop_s=0.5).plot().figure.savefig(path, dpi=150)


# --- the report ---


def calibrate(study: CalibratedStudy, folder: str) -> None:
    """Held-out speakers count for nothing here: which they were for the model is not known."""
    names = frozenset(study.corpora)
    model = EdrlMeaForAudioClassification.from_pretrained(folder).eval()
    if fingerprint_of(model) != fingerprint_of(study.recipe.template):
        raise ValueError(f"{folder} has another backbone than the recipe: give the recipe that it was trained by.")
    right = right_on_left_out(model, study.training(names), study.validation(names))
    path = Path(folder, "config.json")
    config = json.loads(path.read_text(encoding="utf-8")) | {"coverage_thresholds": coverage_thresholds(right)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{path}: {config['coverage_thresholds']}")


def tables(study: CalibratedStudy, noise: str, sounds: str | None) -> Iterator[tuple[str, list[list]]]:
    yield "What the speech gate lets through", table_of_gates(study, noise, sounds)
    yield f"Sets at {COVERAGE}: % that hold the right label / labels in a set", table_of_sets(study)
    yield "Warning signs, area under the ROC curve", table_of_warnings(study)


def main(argv=None) -> dict:
    parser = argument_parser(__doc__)
    parser.add_argument("--sounds", metavar="DIR", help="further sounds without speech, a sub-folder a kind")
    parser.add_argument(
        "--calibrate", metavar="MODEL", help="folder whose config gets thresholds; nothing else is done"
    )
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    study = CalibratedStudy(options)
    if options.calibrate:
        return calibrate(study, options.calibrate)
    sections = print_tables(tables(study, options.noise, options.sounds), options.output / "rejection.md")
    write_json(options.output / "rejection.json", {"tables": sections})
    plot_risk(study, options.output / "rejection.png")
    plot_timeline(study, options.noise, options.output / "timeline.png")
    return sections


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
