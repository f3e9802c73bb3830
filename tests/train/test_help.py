"""What train/run.py says to somebody who asks, or who mistypes: ours first, at once, and errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from train.arguments import parse_arguments
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
        (["--eval_strategy", "epochs"], "epoch"),
        (["--seed", "one"], "seed"),
        (["--bf16_full_eval", "True"], "GPU"),
        (["--noise_dir", "nowhere"], "nowhere"),
        (["--on_leak", "ignore"], "error or drop"),
        (["--train_sampling_strategy", "sequential"], "random or group_by_length"),
        (["--train_sampling_strategy", "group_by_length"], "frozen backbone"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(flags, named):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--use_cpu", "True", *flags])
    message = str(stopped.value)
    assert message.startswith("error: ") and "\n" not in message and named in message
