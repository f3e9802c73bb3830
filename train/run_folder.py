"""What a run leaves on disk so that it can be killed at any moment and go on: what it was asked for, which steps are
done, and checkpoints of stage 1 that are whole."""

import hashlib
import json
import logging
import platform
import re
import shutil
import subprocess
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from train.data.files import atomic_write, file_hash, fingerprint, is_address, remove_unfinished, sync, write_tensors

logger = logging.getLogger(__name__)

LOCK = ".lock"
LOCK_SECONDS = 6  # a killed run's loaders of data end within five
BEFORE_A_RUN = (LOCK, "embeddings", "tensorboard", "run.json")  # what there may be of a run that was killed at once
OURS = ("run.json", "steps.safetensors", "report.json", "report.md")  # written whole, so that a kill may leave a part
SEAL = "whole.json"  # lists the files of a checkpoint with their hashes; written last
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "scikit-learn", "audiomentations", "soundfile")


class RunError(ValueError):
    """The output directory does not fit the run."""


def check_settings(folder: Path, held: dict, settings: dict, option: str) -> None:
    """Raises RunError, naming what differs, where a folder (given as `option`) holds a run with other settings."""
    changed = sorted(name for name in held.keys() | settings.keys() if held.get(name) != settings.get(name))
    if changed:
        listed = ", ".join(f"{name} {held.get(name)!r} → {settings.get(name)!r}" for name in changed)
        raise RunError(
            f"{folder} holds a run with other settings ({listed}). Give another {option}, or remove this one."
        )


def claim(folder: Path, option: str, before_a_run: tuple[str, ...], seconds: float = 0):
    """A held lock that makes a folder (given as `option`) this run's own: until it is released, or the process ends.
    At an address nothing can be held, and whoever starts two runs there has them overwrite each other.

    before_a_run: beginnings of the names that there may be of a run that has no run.json yet.

    Raises:
        RunError: the folder holds something else, cannot be written, or another run is writing to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = folder.iterdir() if folder.exists() else ()  # an address may have no folders before they hold something
        foreign = sorted(path.name for path in found if not path.name.startswith(before_a_run))
        lock = nullcontext() if is_address(folder) else FileLock(folder / LOCK).acquire(timeout=seconds)
    except Timeout as error:
        raise RunError(f"Another run is writing to {folder}. Wait for it, or give another {option}.") from error
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}). Give another {option}.") from error
    if foreign and not (folder / "run.json").exists():
        raise RunError(
            f"{folder} holds something else ({', '.join(foreign[:3])}) and no run of this. Give a new or empty folder "
            f"as {option}."
        )
    return lock


class RunFolder:
    """`run.json`, `steps.safetensors` and sealed `checkpoint-N/` in a run's output directory."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.steps_file, self.run_file = self.folder / "steps.safetensors", self.folder / "run.json"

    def lock(self) -> None:
        """Make the folder this process's own, until it ends. One process of a run calls it, before anything else."""
        self._lock = claim(self.folder, "--output_dir", BEFORE_A_RUN, LOCK_SECONDS)

    def open(self, settings: dict, about: dict) -> None:
        """Claim the folder for a run with these settings (all that decides its result), or find them to be those of
        the run that it holds already.

        Raises:
            RunError: it holds another run; names the settings that differ.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        if self.run_file.exists():
            check_settings(self.folder, self._held_settings(), settings, "--output_dir")
        for name in OURS:
            remove_unfinished(self.folder, name)
        with atomic_write(self.run_file) as temporary:
            temporary.write_text(
                json.dumps({"settings": settings, "checksum": fingerprint(settings), **about}, indent=2)
            )

    def _held_settings(self) -> dict:
        try:
            held = json.loads(self.run_file.read_bytes())
            if held["checksum"] != fingerprint(held["settings"]):
                raise ValueError("its checksum is another")
            return held["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.run_file} is damaged ({error}), so nobody knows which run the folder holds. Remove the folder, "
                "or give another --output_dir."
            ) from error

    def _run(self) -> str:
        """What tells the folder's run from others; "" before it is known."""
        try:
            return str(json.loads(self.run_file.read_bytes())["checksum"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def completed_steps(self) -> list[str]:
        """Names of the steps of training that are done, in their order."""
        return self._read_steps()[0]

    def load_steps(self) -> dict[str, torch.Tensor]:
        """The state of the model after the completed steps."""
        return self._read_steps()[1]

    def _read_steps(self) -> tuple[list[str], dict[str, torch.Tensor]]:
        if not self.steps_file.exists():
            return [], {}
        try:
            with safe_open(self.steps_file, "pt") as file:
                metadata = file.metadata()
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["run"] != self._run():
                raise ValueError("it is of another run")
            if metadata["checksum"] != _checksum(metadata["steps"], state):
                raise ValueError("its checksum is another")
            return json.loads(metadata["steps"]), state
        except (SafetensorError, KeyError, TypeError, OSError, ValueError) as error:
            logger.warning("%s is damaged (%s): its steps are repeated.", self.steps_file, error)
            return [], {}

    def record_steps(self, steps: list[str], state: dict[str, torch.Tensor]) -> None:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        named = json.dumps(steps)
        with atomic_write(self.steps_file) as temporary:
            about = {"steps": named, "run": self._run(), "checksum": _checksum(named, state)}
            write_tensors(temporary, state, about)

    def seal(self, checkpoint: Path) -> None:
        """Mark a checkpoint as whole, once all its files are written."""
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)
        for file in files:
            sync(file)
        hashes = {str(file.relative_to(checkpoint)): file_hash(file) for file in files}
        with atomic_write(checkpoint / SEAL) as temporary:
            temporary.write_text(json.dumps({"run": self._run(), "files": hashes}, indent=2))

    def newest_checkpoint(self, repair: bool = True) -> Path | None:
        """The newest whole checkpoint; newer ones that are damaged or half-written are passed over with a warning.

        repair: remove them (in one process), so that training writes them anew.
        """
        ours = [path for path in self.folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
        found = sorted(ours, key=lambda path: int(path.name.rpartition("-")[2]))
        for checkpoint in reversed(found):
            wrong = whats_wrong(checkpoint, self._run())
            if wrong is None:
                return checkpoint
            logger.warning("%s is not whole (%s): the one before it is used.", checkpoint, wrong)
            if repair:
                shutil.rmtree(checkpoint, ignore_errors=True)
        return None


def whats_wrong(checkpoint: Path, run: str) -> str | None:
    """What a run's sealed checkpoint lacks; None if it is whole."""
    try:
        sealed = json.loads((checkpoint / SEAL).read_bytes())
        of_run, named = sealed["run"], sealed["files"].items()
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return "writing it was cut short"
    if of_run != run:
        return "it is of another run"
    if "model.safetensors" not in sealed["files"]:
        return f"{SEAL} is damaged"
    for name, digest in named:
        path = checkpoint / name
        if not path.is_file() or file_hash(path) != digest:
            return f"{name} is damaged"
    return None


def _checksum(steps: str, state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(steps.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def about_this_run(command: str, n_processes: int) -> dict:
    """How to repeat a run: command, versions, commit."""
    return {
        "command": command,
        "processes": n_processes,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git_commit": git_commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def git_commit() -> str | None:
    """Commit of the code, with a + where it was changed since; None outside a repository."""
    root = Path(__file__).resolve().parents[1]
    ask = lambda *args: subprocess.run(["git", "-C", root, *args], capture_output=True, text=True)  # noqa: E731
    try:
        found = ask("rev-parse", "HEAD")
        if found.returncode or Path(ask("rev-parse", "--show-toplevel").stdout.strip()) != root:
            return None
        return found.stdout.strip() + "+" * bool(ask("status", "--porcelain", "-uno").stdout.strip())
    except OSError:
        return None
