import numpy as np
import pytest

from train.benchmark.comparisons import comparisons, corruption_errors, summaries
from train.benchmark.runner import Cell
from train.evaluation.metrics import uar
from train.evaluation.predictions import Predictions


def predictions_of(corpus: str, accuracy: float, seed: int = 0, n_speakers: int = 8) -> Predictions:
    rng = np.random.default_rng(seed)
    references = np.arange(160) % 4
    predicted = np.where(rng.random(160) < accuracy, references, (references + 1) % 4)
    names = np.array([f"{corpus}/{i}" for i in range(160)])
    speakers = np.array([f"{corpus}_{i % n_speakers}" for i in range(160)])
    return Predictions(references, np.eye(4)[predicted], speakers, names)


def cell(model, corpus, accuracy, condition="clean", level=None, snr=None, protocol=None, train=(), seed=0) -> Cell:
    protocol = protocol or ("clean" if condition == "clean" else "corruption")
    setting = {"snr_db": snr} if snr is not None else None
    return Cell(model, protocol, train, corpus, condition, level, setting, predictions_of(corpus, accuracy, seed), None)


@pytest.fixture
def cells():
    found = []
    for model, gain in (("linear", 0.0), ("ours", 0.15)):
        for seed, corpus in enumerate(("a", "b")):
            found.append(cell(model, corpus, 0.8, seed=seed))
            found += [
                cell(model, corpus, 0.7 - 0.15 * level + gain, "noise_x", level, snr, seed=seed)
                for level, snr in ((1, 20), (2, 10), (3, 0))
            ]
    return found


def test_a_mean_is_the_mean_of_its_cells(cells):
    found = {(entry["model"], entry["over"]): entry for entry in summaries(cells)}
    noisy = [c for c in cells if c.model == "linear" and c.level in (2, 3)]
    expected = np.mean([uar(c.predictions.references, c.predictions.probabilities.argmax(1)) for c in noisy])
    entry = found["linear", "noise at 10 and 0 dB"]
    assert entry["mean"]["value"] == pytest.approx(expected)
    assert (entry["n_cells"], entry["n_speakers"]) == (4, 16)
    assert entry["mean"]["low"] < expected < entry["mean"]["high"]


def test_a_paired_difference_is_exact_where_two_models_predict_alike(cells):
    found = {entry["over"]: entry["difference"] for entry in comparisons(cells, "linear")}
    assert found["clean"] == {"value": 0, "low": 0, "high": 0}
    assert found["noise at 10 and 0 dB"]["low"] > 0.05
    assert found["noise at 10 and 0 dB: a"]["value"] > 0


def test_only_recordings_that_both_predicted_are_compared(cells):
    for mine in (c for c in cells if c.model == "ours" and c.test == "a"):
        mine.predictions = mine.predictions.rows(np.arange(0, 160, 2)[::-1])
    found = {entry["over"]: entry for entry in comparisons(cells, "linear")}
    assert found["clean: a"]["difference"]["value"] == 0 and found["clean: a"]["n_speakers"] == 4


def test_a_mean_over_cells_that_the_baseline_lacks_is_not_compared(cells):
    lacking = [c for c in cells if not (c.model == "linear" and c.test == "b" and c.level == 3)]
    overs = {entry["over"] for entry in comparisons(lacking, "linear")}
    assert "noise at 10 and 0 dB" not in overs and "noise at 10 and 0 dB: a" in overs and "clean" in overs


def test_cross_corpus_cells_are_paired_by_what_was_trained_on():
    cells = [
        cell(model, "b", accuracy, protocol="cross_corpus", train=(source,))
        for model, source, accuracy in (("x", "a", 0.5), ("x", "c", 0.9), ("y", "c", 0.9), ("y", "a", 0.5))
    ]
    found = {entry["over"]: entry["difference"]["value"] for entry in comparisons(cells, "x")}
    assert found == {"cross-corpus": 0, "cross-corpus: a → b": 0, "cross-corpus: c → b": 0}


def test_corruption_error_follows_robusers_definition(cells):
    (own,) = [e for e in corruption_errors(cells, "linear") if e["model"] == "ours"]
    (baseline,) = [e for e in corruption_errors(cells, "linear") if e["model"] == "linear"]
    assert baseline["ce"] == pytest.approx(100) and baseline["relative_ce_uar"] == pytest.approx(100)

    def error(model, condition):
        found = [c for c in cells if c.model == model and c.condition == condition]
        by_level = {}
        for c in found:
            wrong = np.mean(c.predictions.probabilities.argmax(1) != c.predictions.references)
            by_level.setdefault(c.level, []).append(wrong)
        return np.array([np.mean(errors) for errors in by_level.values()])

    ours, theirs, clean = error("ours", "noise_x"), error("linear", "noise_x"), error("ours", "clean")
    assert own["ce"] == pytest.approx(100 * ours.sum() / theirs.sum())
    assert own["relative_ce"] == pytest.approx(100 * (ours - clean).sum() / (theirs - clean).sum())


def test_corruption_errors_are_counted_on_recordings_that_both_predicted(cells):
    for mine in (c for c in cells if c.model == "ours"):
        mine.predictions = next(
            c for c in cells if c.model == "linear" and (c.test, c.level) == (mine.test, mine.level)
        ).predictions.rows(np.arange(0, 160, 3))
    assert all(entry["ce"] == pytest.approx(100) for entry in corruption_errors(cells, "linear"))


def test_no_figure_is_given_where_the_baseline_makes_no_errors():
    cells = [
        cell(model, "a", 1.0, condition, level) for model in "xy" for condition, level in (("clean", None), ("mp3", 1))
    ]
    assert all(entry["ce"] is None and entry["relative_ce"] is None for entry in corruption_errors(cells, "x"))
