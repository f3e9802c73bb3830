"""What train/run.py says to somebody who asks, or who mistypes: ours first, at once, and errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tones import write_corpus
from train import run
from train.arguments import CHOICES, parse_arguments
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
    bare = [entry.split("\n")[0] for entry in entries if entry.split("\n")[1].strip().startswith("(default")]
    known = {"num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "weight_decay"}
    assert set(bare) <= known | {"eval_strategy", "save_strategy", "logging_strategy", "report_to", "seed"}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--label_scheme", "four"], "Did you mean four_emotions"),
        (["--arrangement", "edrl_me"], "Did you mean edrl_mea"),
        (["--layer_combination", "concatenat"], "Did you mean concatenate"),
        (["--layer_combination", "concat"], "Did you mean concatenate"),
        (["--alignment_target", "clean_original", "label"], "Did you mean labels"),
        (["--on_leak", "ignore"], "error, drop"),
        (["--on_bad_audio", "ignore"], "error, skip"),
        (["--eval_strategy", "epochs"], "epoch"),
        (["--save_strategy", "epochs"], "epoch"),
        (["--logging_strategy", "epochs"], "epoch"),
        (["--optim", "adam"], "adamw_torch"),
        (["--lr_scheduler_type", "cosin"], "cosine"),
        (["--seed", "one"], "seed"),
        (["--keep_given_splits", "perhaps"], "true/false"),
        (["--bf16_full_eval", "True"], "GPU"),
        (["--fp16_full_eval", "True"], "GPU"),
        (["--noise_dir", "nowhere"], "nowhere"),
        (["--train_sampling_strategy", "sequential"], "random or group_by_length"),
        (["--train_sampling_strategy", "group_by_length"], "frozen backbone"),
        (["--noisy_copies", "1", "--rir_dir", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(flags, named):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--use_cpu", "True", *flags])
    message = str(stopped.value)
    assert message.startswith("error: ") and "\n" not in message and named in message


def test_every_choice_of_ours_is_known_to_be_one():
    assert {"arrangement", "classifier", "layer_combination", "alignment_target", "label_scheme", "on_leak"} <= set(
        CHOICES
    )
    for name in CHOICES:
        with pytest.raises(SystemExit, match=f"error: {name}=nonsense: choose one of"):
            parse_arguments(["--use_cpu", "True", f"--{name}", "nonsense"])


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
