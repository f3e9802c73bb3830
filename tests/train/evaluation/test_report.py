import json

import numpy as np
import pytest

from hub_card.schema import ReportError, validate
from train.data.corpora import load_corpus
from train.evaluation.predictions import Predictions
from train.evaluation.report import model_entry, new_report, result_row, training_entry, write_report

EMOTIONS = ["anger", "happiness", "neutral", "sadness"]


def predictions_of(n: int = 120, n_speakers: int = 6, accuracy: float = 0.7, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    references = np.arange(n) % 4
    predicted = np.where(rng.random(n) < accuracy, references, rng.integers(0, 4, n))
    probabilities = np.full((n, 4), 0.1)
    probabilities[np.arange(n), predicted] = 0.7
    speakers = np.array([f"speaker_{i // 4 % n_speakers}" for i in range(n)])
    return Predictions(references, probabilities, speakers, np.arange(n).astype(str))


def report(**changes) -> dict:
    row = result_row("ours", EMOTIONS, predictions_of(), test="emodb", train=["emodb"], temperature=1.5)
    return (
        new_report("python x", seed=0, models=[model_entry("ours", EMOTIONS, source="recipe.yaml")], results=[row])
        | changes
    )


def test_a_row_has_the_figures_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix

    given = predictions_of()
    row = result_row("ours", EMOTIONS, given, test="emodb")
    predicted = given.probabilities.argmax(1)
    assert row["metrics"]["uar"]["value"] == pytest.approx(balanced_accuracy_score(given.references, predicted))
    assert row["confusion"] == confusion_matrix(given.references, predicted).tolist()
    assert row["metrics"]["uar"]["low"] < row["metrics"]["uar"]["value"] < row["metrics"]["uar"]["high"]
    assert row["n_speakers"] == 6 and list(row["recall"]) == EMOTIONS


def test_folds_joined_give_the_row_of_the_whole():
    whole = predictions_of()
    first = np.isin(whole.speakers, ["speaker_0", "speaker_3"])
    joined = Predictions.joined([whole.rows(first), whole.rows(~first)])
    assert result_row("m", EMOTIONS, joined, test="emodb") == result_row("m", EMOTIONS, whole, test="emodb")


def test_one_speaker_gives_a_figure_without_an_interval(tmp_path):
    row = result_row("ours", EMOTIONS, predictions_of(n_speakers=1), test="emodb")
    assert row["metrics"]["uar"]["low"] is None and row["metrics"]["uar"]["value"] > 0
    written = write_report(report(results=[row]), tmp_path)
    assert json.loads(written.read_text())["results"][0]["metrics"]["wa"]["high"] is None


def test_a_written_report_is_valid_json_without_nan_beside_a_table(tmp_path):
    absent = predictions_of()
    absent.references[:] = np.arange(120) % 3  # no sadness, so no recall of it
    row = result_row("ours", EMOTIONS, absent, test="emodb", setting={"snr_db": float("nan")})
    written = write_report(report(results=[row], duration_seconds=np.float64(3)), tmp_path)
    text = written.read_text()
    assert "NaN" not in text
    assert json.loads(text)["results"][0]["recall"]["sadness"] is None
    validate(json.loads(text))
    assert "| ours |" in (tmp_path / "report.md").read_text()


def test_a_benchmark_tells_on_the_mean_whether_temperatures_carry_over(tmp_path):
    cases = [("clean", 1.3), ("clean", 0.2), ("cross_corpus", None)]
    rows = [
        result_row(
            "ours", EMOTIONS, predictions_of(seed=seed), test="emodb", protocol=protocol, temperature=temperature
        )
        for seed, (protocol, temperature) in enumerate(cases)
    ]
    before, after = (
        100 * np.array([row["metrics"][name]["value"] for row in rows[:2]]) for name in ("ece", "ece_calibrated")
    )
    mean = {"model": "ours", "over": "clean", "metric": "uar", "mean": {"value": 0.5, "low": None, "high": None}}
    write_report(report(results=rows, summaries=[mean]), tmp_path)
    shown = f"{before.mean():.1f} → {after.mean():.1f} (lower in {(after < before).sum()} of 2)"
    page = (tmp_path / "report.md").read_text()
    assert f"| model | Clean speech |\n| --- | --- |\n| ours | {shown} |" in page


@pytest.mark.parametrize(
    "spoil, named",
    [
        (lambda r: r["results"][0]["metrics"].pop("uar"), r"results\[0\].metrics"),
        (lambda r: r["results"][0].update(protocol="noisy"), r"results\[0\].protocol"),
        (lambda r: r["results"][0]["metrics"]["wa"].update(value=71.1), r"wa.value"),
        (lambda r: r["results"][0].update(model="theirs"), "theirs"),
        (lambda r: r["results"][0].update(confusion=[[120]]), "4 × 4"),
        (lambda r: r["results"][0].update(n_recordings=1), "n_recordings"),
        (lambda r: r.update(schema="edrl-mea-report/0"), "schema"),
        (lambda r: r["models"].append(r["models"][0]), "names must differ"),
    ],
)
def test_a_report_that_does_not_fit_is_refused_by_the_name_of_the_field(tmp_path, spoil, named):
    spoiled = report()
    spoil(spoiled)
    with pytest.raises(ReportError, match=named):
        write_report(spoiled, tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_names_each_corpus_as_its_authors_do(tmp_path):
    from tests.support.tones import write_corpus

    folder = write_corpus(tmp_path / "tones", n_speakers=2)
    found = load_corpus(f"emodb={folder / 'metadata.csv'}", label_scheme="four_emotions")
    entry = training_entry([found], "four_emotions", splits={"train": found["speaker"]})
    assert entry["corpora"][0]["title"] == "EMO-DB" and entry["corpora"][0]["recordings"] == len(found)
    assert len(entry["splits"]["train"]) == 2
    halves = training_entry([found.select(range(12)), found.select(range(12, 24))], "four_emotions")
    assert halves["corpora"] == entry["corpora"]
    validate(report(training=entry))
