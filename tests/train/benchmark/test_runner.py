"""scripts/benchmark_robustness.py as a whole, on tones and a tiny backbone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from hub_card.schema import validate
from scripts import benchmark_robustness
from tests.support.tones import EMOTIONS, write_backbone, write_corpus
from train.benchmark import report as benchmark_report
from train.benchmark import runner as benchmark
from train.benchmark.contenders import TrialPredictions
from train.benchmark.recipes import Recipe
from train.evaluation.predictions import SUFFIXES

from .test_hub_models import stock_model

ROOT = Path(__file__).resolve().parents[3]
PLOTS = {"uar_against_snr", "cross_corpus", "confusion", "reliability", "embedding_map"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_backbone_config):
    """Corpora a and b, noise shorter than the speech, two recipes and a shared cache."""
    root = tmp_path_factory.mktemp("benchmark")
    for name, size in (("a", 5), ("b", 4)):
        write_corpus(root / name, size)
    backbone = write_backbone(root / "backbone", tiny_backbone_config)
    (root / "noise").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        soundfile.write(root / "noise" / f"{number}.wav", 0.1 * rng.standard_normal(1600), 16_000)
    shared = {"model_name_or_path": str(backbone), "num_train_epochs": 1, "per_device_train_batch_size": 16}
    for name, settings in {
        "linear": {"arrangement": "linear"},
        "ours": {"arrangement": "edrl", "noisy_copies": 1},
    }.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(shared | settings))
    return root


def arguments(folders, output, *more) -> list[str]:
    given = [f"--corpus=a={folders / 'a'}", f"--corpus=b={folders / 'b'}", f"--noise={folders / 'noise'}"]
    given += [f"--recipe={folders / 'linear.yaml'}", f"--recipe={folders / 'ours.yaml'}"]
    settings = ["--folds", "2", "--corruptions", "noise_noise", "clipping", "--levels", "2", "3"]
    return [*given, *settings, f"--cache={folders / 'cache'}", f"--output={output}", *map(str, more)]


@pytest.fixture(scope="module")
def report(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    stock = stock_model(folders / "stock", ["LABEL_0", "hap", "neu", "sad"])
    extra = (
        f"--model=stock={stock}",
        "--label_map",
        "LABEL_0=anger",
        "--adapt",
        "test",
        "speaker",
        "--baseline",
        "linear",
    )
    report = benchmark_robustness.main(arguments(folders, output, *extra))
    assert json.loads((output / "report.json").read_text())["results"] == report["results"]
    assert {path.stem for path in output.glob("*.png")} == PLOTS == set(report["plots"])
    return report


def test_every_protocol_gives_its_rows_in_one_valid_report(report):
    validate(report)
    assert not report["errors"]
    found = {}
    for row in report["results"]:
        found.setdefault((row["model"], row["protocol"]), []).append(row)
    for model in (f"{name}{suffix}" for name in ("linear", "ours") for suffix in SUFFIXES.values()):
        sizes = {
            name: len(found[model, name]) for name in ("clean", "corruption", "cross_corpus", "leave_one_corpus_out")
        }
        assert sizes == {"clean": 2, "corruption": 8, "cross_corpus": 2, "leave_one_corpus_out": 2}
    assert len(found["stock", "clean"]) == 2 and len(found["stock", "corruption"]) == 8
    assert {row["n_recordings"] for row in found["linear", "clean"]} == {60, 48}  # each recording once over the folds
    assert all("ece_calibrated" in row["metrics"] for row in found["ours", "clean"])


def test_recipes_learn_tones_and_a_model_that_nobody_trained_does_not(report):
    clean = {m: r["mean"]["value"] for r in report["summaries"] if r["over"] == "clean" for m in [r["model"]]}
    assert clean["linear"] > 0.7 > 0.5 > clean["stock"]
    better = next(c for c in report["comparisons"] if c["model"] == "stock" and c["over"] == "clean")
    assert better["difference"]["high"] < 0


def test_noise_and_rooms_in_testing_never_serve_in_training(report):
    parts = report["noise"]["noise"]
    assert parts["training"]["files"] and parts["testing"]["files"]
    assert not set(parts["training"]["files"]) & set(parts["testing"]["files"])


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(benchmark_report, "add_plots", lambda *given: None)


def test_a_repetition_trains_nothing_and_says_the_same(folders, tmp_path, report, monkeypatch, no_plots):
    monkeypatch.setattr(Recipe, "run", None)
    again = benchmark_robustness.main(arguments(folders, tmp_path, "--baseline", "linear"))
    plain = [row for row in report["results"] if row["model"] in ("linear", "ours")]
    assert again["results"] == plain and not again["errors"]


def test_predictions_that_are_damaged_or_of_another_trial_are_none(tmp_path):
    for name in ("trial", "other"):
        probabilities = {("plain", "a", "clean"): np.full((3, 4), 0.25 + (name == "other"))}
        benchmark.store_predictions(tmp_path / name, TrialPredictions(probabilities))
    assert (benchmark.read_predictions(tmp_path / "trial").probabilities["plain", "a", "clean"] == 0.25).all()
    whole, other = ((tmp_path / name).read_bytes() for name in ("trial", "other"))
    flipped = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(0, len(whole), 7)]
    for damaged in (*flipped, bytes(len(whole)), whole[: len(whole) // 2], b"", other):
        (tmp_path / "trial").write_bytes(damaged)
        assert benchmark.read_predictions(tmp_path / "trial") is None
    (tmp_path / "trial").unlink()
    assert benchmark.read_predictions(tmp_path / "trial") is None


def test_other_recordings_under_the_same_names_are_other_recordings(tmp_path):
    paths = [str(write_tone(tmp_path / f"{i}.wav", 200 + i)) for i in range(2)]
    corpus = {"audio": paths, "label": [0, 1], "speaker": ["a", "b"]}
    run = benchmark.Benchmark({"tones": corpus}, [], [], tmp_path)
    before = run.content("tones", np.arange(2))
    write_tone(Path(paths[1]), 300)  # as many bytes
    assert run.content("tones", np.arange(2)) != before


def write_tone(path: Path, pitch: float) -> Path:
    soundfile.write(path, 0.1 * np.sin(pitch * np.arange(1600) / 16_000), 16_000)
    return path


def test_an_interrupted_run_goes_on_where_it_was(folders, tmp_path, report, monkeypatch, no_plots):
    stored, store = [], benchmark.store_predictions

    def store_and_stop(*given):
        if len(stored) == 3:
            raise KeyboardInterrupt
        stored.append(given)
        store(*given)

    given = arguments(folders, tmp_path / "out", "--folds", "3", "--protocols", "clean")
    given = [part for part in given if "ours.yaml" not in part]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(benchmark, "store_predictions", store_and_stop)
        benchmark_robustness.main(given)
    assert not (tmp_path / "out" / "report.json").exists()
    trained, run = [], Recipe.run
    monkeypatch.setattr(Recipe, "run", lambda self, trial, *rest: trained.append(trial) or run(self, trial, *rest))
    benchmark_robustness.main(given)
    assert len(trained) == 6 - 3  # two corpora, three folds


@pytest.mark.slow
def test_trainings_at_once_give_what_they_give_one_after_another(folders, tmp_path, report, no_plots):
    fresh = [part for part in arguments(folders, tmp_path) if not part.startswith("--cache")]
    both = [*fresh, "--protocols", "clean", "--jobs", "2", f"--cache={tmp_path / 'cache'}"]
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "embeddings").symlink_to(folders / "cache" / "embeddings")
    found = benchmark_robustness.main(both)["results"]
    expected = [row for row in report["results"] if row["model"] in ("linear", "ours") and row["protocol"] == "clean"]
    assert found == expected


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(folders, tmp_path, report):
    """Killed for real after its third training; the next run trains only the rest."""
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from scripts import benchmark_robustness
from train.benchmark import runner as benchmark
stored, store = [], benchmark.store_predictions
def store_and_die(*given):
    store(*given)
    stored.append(given)
    if len(stored) == 3:
        os._exit(9)
benchmark.store_predictions = store_and_die
benchmark_robustness.main(sys.argv[1:])
"""
    given = arguments(folders, tmp_path / "out", "--folds", "4", "--protocols", "clean")
    killed = subprocess.run([sys.executable, "-c", script, *given], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr[-2000:]
    assert not (tmp_path / "out" / "report.json").exists()
    trained, run = [], Recipe.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "run", lambda self, trial, *rest: trained.append(trial) or run(self, trial, *rest))
        benchmark_robustness.main(given)
    assert len(trained) == 16 - 3  # two recipes, two corpora, four folds


def test_a_recipe_that_fails_in_one_fold_costs_that_corpus_and_nothing_else(
    folders, tmp_path, report, monkeypatch, no_plots
):
    run = Recipe.run

    def fail(self, trial, data, conditions):
        if self.name == "ours" and trial.protocol == "folds" and "a" in trial.tests and trial.fold == 2:
            raise RuntimeError("the loss is not finite")
        return run(self, trial, data, conditions)

    monkeypatch.setattr(Recipe, "run", fail)
    again = benchmark_robustness.main(arguments(folders, tmp_path, "--folds", "3", "--protocols", "clean"))
    (error,) = again["errors"]
    assert (error["model"], error["test"], error["fold"]) == ("ours", "a", 2) and "not finite" in error["error"]
    found = {(row["model"], row["test"]) for row in again["results"] if row["protocol"] == "clean"}
    assert found == {("linear", "a"), ("linear", "b"), ("ours", "b")}
    assert "Not measured: 1" in (tmp_path / "report.md").read_text()


def test_a_condition_that_cannot_be_made_costs_its_own_rows_only(folders, tmp_path, report, no_plots):
    for number in range(4):
        (tmp_path / "silence").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "silence" / f"{number}.wav", np.zeros(1600), 16_000)
    given = [part for part in arguments(folders, tmp_path / "out") if not part.startswith(("--noise", "--recipe"))]
    given = ["noise_silence" if part == "noise_noise" else part for part in given]
    stock = [f"--model={folders / 'stock'}", "--label_map", "LABEL_0=anger", f"--noise={tmp_path / 'silence'}"]
    found = benchmark_robustness.main([*given, *stock])
    assert len(found["errors"]) == 4 and all("silent throughout" in error["error"] for error in found["errors"])
    assert {row["condition"] for row in found["results"]} == {"clean", "clipping"}


def test_a_corpus_with_one_speaker_costs_its_folds_and_is_trained_on_and_tested(folders, tmp_path, no_plots):
    alone = write_corpus(tmp_path / "alone", 1)
    given = arguments(folders, tmp_path / "out", f"--corpus=alone={alone}", "--protocols", "clean", "cross_corpus")
    report = benchmark_robustness.main([part for part in given if "ours.yaml" not in part])
    assert [error["test"] for error in report["errors"]] == ["alone"]
    assert {row["test"] for row in report["results"] if row["train"] == ["alone"]} == {"a", "b"}
    tested = [row for row in report["results"] if row["test"] == "alone"]
    assert tested and all(row["metrics"]["uar"]["low"] is None for row in tested)


def test_a_list_of_recordings_narrows_what_a_model_is_given(folders, tmp_path, report, no_plots):
    (tmp_path / "list.txt").write_text("a/anger_0_0.wav\na/sadness_1_2.wav")
    given = [part for part in arguments(folders, tmp_path / "out") if not part.startswith("--recipe")]
    more = [f"--model={folders / 'stock'}", "--label_map", "LABEL_0=anger", "--test_list", f"a={tmp_path / 'list.txt'}"]
    found = benchmark_robustness.main([*given, *more, "--protocols", "clean"])
    assert {row["test"]: row["n_recordings"] for row in found["results"]} == {"a": 2, "b": 48}


@pytest.mark.parametrize(
    "more, named",
    [
        (["--protocols", "cleen"], "cleen"),
        (["--corruptions", "hiss"], "hiss"),
        (["--baseline", "theirs"], "theirs"),
        (["--test_list", "c=x.jsonl"], "c is none of the corpora"),
        (["--label_map", "anger"], "LABEL=EMOTION"),
    ],
)
def test_wrong_options_are_refused_by_name_before_anything_is_computed(folders, tmp_path, more, named):
    model = ["--model", str(stock_model(tmp_path / "m", ["ang", "hap", "neu", "sad"]))] if "--label_map" in more else []
    with pytest.raises(ValueError, match=named):
        benchmark_robustness.main(arguments(folders, tmp_path / "out", *more, *model))
    assert not (tmp_path / "out").exists()


def test_what_was_read_is_printed_and_stored(report, folders, tmp_path, capsys, no_plots):
    assert report["data"]["parts"]["a"]["classes"] == {"anger": 15, "happiness": 15, "neutral": 15, "sadness": 15}
    assert any("stock: nothing says what it was trained on" in note for note in report["data"]["notes"])
    benchmark_robustness.main(arguments(folders, tmp_path / "out", "--baseline", "linear", "--protocols", "clean"))
    written = (tmp_path / "out" / "report.md").read_text()
    for text in (capsys.readouterr().out, written):
        assert "| b | b | 48 | 0.01 | 4 |" in text
    assert "## What was read" in written and "UAR: recall of each emotion" in written
    assert "**Caution:** intervals over 4 speakers" in written


def test_a_recording_under_two_speakers_stops_the_benchmark_or_is_dropped(folders, tmp_path, no_plots):
    corpus = write_corpus(tmp_path / "twice", 3)
    (corpus / "copy.wav").write_bytes((corpus / "anger_0_0.wav").read_bytes())
    with open(corpus / "metadata.csv", "a") as table:
        table.write("\ncopy.wav,anger,twice_1")
    given = [part for part in arguments(folders, tmp_path / "out", "--protocols", "clean") if "ours.yaml" not in part]
    given = [part for part in given if not part.startswith("--corpus")] + [f"--corpus={corpus}"]
    with pytest.raises(ValueError, match="under several speakers"):
        benchmark_robustness.main(given)
    found = benchmark_robustness.main([*given, "--on_leak", "drop"])
    assert found["results"][0]["n_speakers"] == 2 and "taken for one" in found["data"]["notes"][0]


def test_a_broken_recording_is_listed_before_anything_is_computed(folders, tmp_path):
    corpus = write_corpus(tmp_path / "broken", 2)
    (corpus / "anger_0_0.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="anger_0_0.wav"):
        benchmark_robustness.main(arguments(folders, tmp_path / "out", f"--corpus=broken={corpus}"))


@pytest.mark.slow
def test_the_exit_status_says_whether_all_was_measured(folders, tmp_path):
    command = [sys.executable, "scripts/benchmark_robustness.py"]
    given = arguments(folders, tmp_path / "out", "--protocols", "clean")
    assert subprocess.run([*command, *given], cwd=ROOT, capture_output=True).returncode == 0
    alone = write_corpus(tmp_path / "alone", 1)
    done = subprocess.run([*command, *given, f"--corpus=alone={alone}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "1 not measured" in done.stdout


def test_a_recipe_of_another_label_scheme_is_refused(folders, tmp_path):
    (tmp_path / "arousal.yaml").write_text("label_scheme: arousal\n")
    with pytest.raises(ValueError, match="label_scheme arousal"):
        benchmark_robustness.main(arguments(folders, tmp_path / "out", f"--recipe={tmp_path / 'arousal.yaml'}"))


def test_attributes_are_measured_beside_emotions_in_folds_and_of_a_finished_model(folders, tmp_path, tiny_model):
    corpus = write_corpus(tmp_path / "rated", n_speakers=4)
    header, *rows = (corpus / "metadata.csv").read_text().splitlines()
    heights = dict(zip(EMOTIONS, (4, 3, 2, 1), strict=True))
    rows = [f"{row},{heights[row.split(',')[1]] if i % 5 else ''}" for i, row in enumerate(rows)]
    (corpus / "metadata.csv").write_text("\n".join([f"{header},height", *rows]))
    tiny_model("edrl_mea", attribute_names=["height"], attribute_ranges={"height": [1, 4]}).save_pretrained(
        tmp_path / "own"
    )
    command = [f"--corpus={corpus}", f"--recipe={folders / 'linear.yaml'}", f"--model=own={tmp_path / 'own'}"]
    command += ["--attributes", "height", "--protocols", "clean", "--folds", "2", "--adapt", "test"]
    report = benchmark_robustness.main([*command, f"--output={tmp_path / 'out'}"])
    found = {row["model"]: row["attributes"]["height"] for row in report["results"]}
    assert set(found) == {"linear", "linear + adaptation", "own", "own + adaptation"} and not report["errors"]
    assert found["linear"]["ccc"]["value"] > 0.4 and found["linear"]["n_recordings"] == 38
    assert found["linear"] == found["linear + adaptation"]
    assert "| height | 1–4 | 38 |" in (tmp_path / "out" / "report.md").read_text()
