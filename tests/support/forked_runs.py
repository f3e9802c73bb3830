"""Trainings by train/run.py in forks of this process: what takes seconds to import is there, so that hundreds of runs
may be stopped at hundreds of places."""

import errno
import gc
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import jsonschema  # noqa: F401 (else every run would import it)
import matplotlib.figure
import safetensors.torch
import sklearn.linear_model  # noqa: F401
import torch
from safetensors.torch import load_file
from transformers import dynamic_module_utils

from modeling_edrl_mea import linear_heads
from train import run, run_folder
from train.data import files
from train.trainer import EdrlMeaTrainer

from .tables import FORK

REMOVALS = ("os.remove", "os.rmdir")
CHANGES = ("os.rename", "os.truncate", "os.link", "os.symlink")
WRITES = ("fsync", "save", "serialize_file")  # a half of the file may be written
SECONDS = 300  # after which a run counts as hung


@dataclass
class Ended:
    """How a run ended: its exit code, -9 where it was killed, and what it printed."""

    code: int
    output: str

    @property
    def last_line(self) -> str:
        return self.output.strip().rpartition("\n")[2]


def train(flags: dict, hinder: Callable[[], object] | None = None) -> Ended:
    """As [`start`], to its end."""
    child = start(flags, hinder)
    child.join(SECONDS)
    if child.exitcode is None:
        child.kill()
    return Ended(child.exitcode, _log(flags).read_text())


def start(flags: dict, hinder: Callable[[], object] | None = None):
    """A training with `--name value` for each flag, in a process of its own; `hinder` is called in it first."""
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    child = FORK.Process(target=_train, args=(argv, _log(flags), hinder))
    child.start()
    return child


def _log(flags: dict) -> Path:
    """What a training prints; beside its folder."""
    return Path(f"{flags['output_dir']}.log")


def _train(argv: list[str], log: Path, hinder: Callable | None) -> None:
    sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
    for stream in (1, 2):
        os.dup2(sys.stdout.fileno(), stream)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    # Drawing, choosing among four, and noise of two levels would take most of the time.
    drawing = MagicMock(savefig=lambda path, **_: Path(path).write_bytes(b"\x89PNG\r\n\x1a\n"))
    matplotlib.figure.Figure = lambda **_: drawing
    linear_heads.INVERSE_REGULARIZATION = linear_heads.INVERSE_REGULARIZATION[:1]
    run.TEST_LEVELS = run.TEST_LEVELS[:1]
    run_folder.git_commit = lambda: None
    files.SETTLED = -1  # else the time decides how often it is written which files are whole
    os.fsync = fsync
    gc.freeze()  # else every collection goes through all that the parent holds
    if hinder is not None:
        hinder()
    run.start(argv)


def fsync(descriptor: int) -> None:
    """Waits for no disk: what a process has written outlives its kill without."""


# --- what may hinder a run ------------------------------------------------------------------------------------


def stop_at_step(step: int, number: signal.Signals) -> None:
    """A signal to this process within the `step`-th step of stage 1 that it makes."""
    made, training_step = [], EdrlMeaTrainer.training_step

    def step_and_stop(self, *args, **kwargs):
        made.append(None)
        if len(made) == step:
            os.kill(os.getpid(), number)
        return training_step(self, *args, **kwargs)

    EdrlMeaTrainer.training_step = step_and_stop


class Disk:
    """Counts what this process changes below a folder, and at the n-th change fails or kills.

    Args:
        folder: what lies elsewhere is not counted.
        last: number of the change, from 1, that no longer happens; 0: all do.
        how: "fails": it does not happen, as if the disk were full; "killed": the process is, before it; "torn": the
            process is, when a half of the file is written.
        copies: folder for `changes.txt`, a line a change, and for what each kill would leave: `killed-N`, `torn-N`.
    """

    def __init__(self, folder: Path, last: int = 0, how: str = "killed", copies: Path | None = None):
        self.folder, self.last, self.how, self.copies, self.n = str(folder), last, how, copies, 0

    def __call__(self) -> None:
        # Of the forty files of code that a model is saved with, a few: all are written alike.
        imported = dynamic_module_utils.get_relative_import_files
        dynamic_module_utils.get_relative_import_files = lambda file: imported(file)[:1]
        sys.addaudithook(self._audit)
        os.fsync = partial(self._written, os.fsync, lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
        torch.save = partial(self._written, torch.save, lambda _, file, *args, **kwargs: file)
        # What reaches the disk through neither Python's `open` nor an audited call.
        safetensors.torch.serialize_file = partial(
            self._written, safetensors.torch.serialize_file, lambda _, file, *args, **kwargs: file
        )

    def _audit(self, event: str, args: tuple) -> None:
        if event == "open":
            happens = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        elif event == "os.mkdir":
            happens = not os.path.exists(args[0])
        elif event in REMOVALS:
            happens = os.path.lexists(args[0])
        else:
            happens = event in CHANGES
        if happens:
            self._change(event, args[0])

    def _change(self, what: str, path) -> bool:
        """Counts; raises or kills where it is time to. True: to be killed when half is written."""
        if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(self.folder):
            return False
        self.n += 1
        if self.copies:
            self._keep(what, os.path.relpath(os.fsdecode(path), self.folder))
        if not self.last or self.n < self.last:
            return False
        if self.how == "killed" or (self.how == "torn" and what not in WRITES):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "fails" and self.n == self.last and what not in REMOVALS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))
        return self.how == "torn"

    def _keep(self, what: str, name: str) -> None:
        with open(self.copies / "changes.txt", "a") as changes:
            changes.write(f"{what} {name}\n")
        if os.path.isdir(self.folder):
            shutil.copytree(self.folder, self.copies / f"killed-{self.n}")

    def _written(self, write: Callable, path_of: Callable, *args, **kwargs):
        path = path_of(*args, **kwargs)
        try:
            torn = self._change(write.__name__, path)
        except OSError as error:
            if write.__name__ == "serialize_file":  # as safetensors says it
                raise safetensors.SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from None
            if write.__name__ == "save":  # as torch says it
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534") from None
            raise
        result = write(*args, **kwargs)
        if self.copies:
            self._keep_torn(path)
        if torn:
            self.last = 0  # truncating is no change of the run's
            if os.path.isfile(path):
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def _keep_torn(self, path) -> None:
        if os.path.isfile(path) and str(path).startswith(self.folder):
            copy = shutil.copytree(self.folder, self.copies / f"torn-{self.n}")
            file = copy / os.path.relpath(path, self.folder)
            os.truncate(file, file.stat().st_size // 2)


def differences(folder: Path, expected: Path) -> str:
    """What of a run's result is not that of another run, bit for bit; what it should not have left; "" for none."""
    found, wanted = (load_file(place / "model.safetensors") for place in (folder, expected))
    wrong = [name for name in wanted.keys() | found.keys() if name not in found or not found[name].equal(wanted[name])]
    results, expected_results = (
        json.loads((place / "report.json").read_text())["results"] for place in (folder, expected)
    )
    wrong += ["results"] * (results != expected_results)
    # In the cache, which others may be writing to at the time, what a killed run was writing stays.
    left = [path for path in folder.rglob("*") if ".tmp" in path.name or path.name == "model.partial"]
    wrong += [path.name for path in left if "embeddings" not in path.parts]
    return ", ".join(wrong)
