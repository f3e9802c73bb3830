"""What train/run.py says to somebody who asks, or who mistypes: ours first, at once, and errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tones import write_corpus
from train import run
from train.help import text

ROOT = Path(__file__).resolve().parents[2]


def test_help_is_ours_and_imports_neither_torch_nor_transformers():
    command = [sys.executable, "-X", "importtime", "train/run.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == text().strip() and "--help_all" in done.stdout
    assert "| torch" not in done.stderr and "transformers" not in done.stderr


def test_every_setting_of_ours_is_in_the_help_with_its_why():
    said = text()
    assert "--on_leak\n      error: stop where" in said and "--block_size" in said and "--adam_beta1" not in said
    entries = said.split("\n  --")[1:]
    assert "that of every published encoder. (default: 16000)" in said  # and not what the next setting is for
    bare = [entry.split("\n")[0] for entry in entries if entry.split("\n")[1].strip().startswith("(default")]
    known = {"num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "weight_decay"}
    assert set(bare) <= known | {"eval_strategy", "save_strategy", "logging_strategy", "report_to", "seed"}


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such"),
        ([], "No --dataset_name"),
        (["--dataset_name", "no/where"], "no/where"),
        (["--dataset_name", "mine=nowhere.csv"], "nowhere.csv"),
        (["--dataset_name", "nowhere.parquet"], "nowhere.parquet"),
        (["--dataset_name", "CORPUS", "--test_dataset_name", "other=no/where/"], "no/where"),
        (["--dataset_name", "CORPUS", "--model_name_or_path", "./nowhere"], "nowhere"),
    ],
)
def test_what_is_missing_is_named_in_one_line(argv, named, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    argv = [str(write_corpus(tmp_path / "corpus", n_speakers=4)) if part == "CORPUS" else part for part in argv]
    with pytest.raises((SystemExit, ValueError, OSError)) as stopped:  # which run.py prints as `error: …`
        run.main([*argv, "--use_cpu", "True", "--report_to", "none", "--output_dir", str(tmp_path / "out")])
    message = str(stopped.value)
    assert named in message and len(message.strip().splitlines()) == 1, message
