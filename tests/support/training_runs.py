"""Trainings by train/run.py in processes of their own, for tests that kill them, or start several at once."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start_training(flags: dict, launcher: Sequence = (sys.executable,), **environment: str) -> subprocess.Popen:
    """train/run.py with `--name value` for each flag; what it prints is kept for `finish`."""
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return subprocess.Popen(
        [*launcher, ROOT / "train" / "run.py", *given],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen, happened: Callable[[], object], timeout: float = 240) -> None:
    """Until it happened; a failure with what the process printed where that ends before, or takes too long (s)."""
    deadline = time.monotonic() + timeout
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            raise AssertionError(process.communicate(timeout=60)[0][-4000:])
        time.sleep(0.005)


def finish(process: subprocess.Popen) -> str:
    """What it printed, once it has ended well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    return output
