"""What a run leaves on disk so that it can be killed at any moment and go on: what it was asked for, which steps are
done, and checkpoints of stage 1 that are whole."""

import json
import logging
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from train.data.files import atomic_write, file_hash, remove_unfinished, sync

logger = logging.getLogger(__name__)

SEAL = "whole.json"  # lists the files of a checkpoint with their hashes; written last
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "scikit-learn", "audiomentations", "soundfile")


class RunError(ValueError):
    """The output directory does not fit the run."""


class RunFolder:
    """`run.json`, `steps.safetensors` and sealed `checkpoint-N/` in a run's output directory."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.steps_file = self.folder / "steps.safetensors"

    def open(self, settings: dict, about: dict) -> None:
        """Claim the folder for a run with these settings (all that decides its result), or find them to be those of
        the run that it holds already.

        Raises:
            RunError: it holds another run; names the settings that differ.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.folder)
        path = self.folder / "run.json"
        settings = json.loads(json.dumps(settings))
        if path.exists():
            held = json.loads(path.read_text())["settings"]
            changed = sorted(name for name in held.keys() | settings.keys() if held.get(name) != settings.get(name))
            if changed:
                listed = ", ".join(f"{name} {held.get(name)!r} → {settings.get(name)!r}" for name in changed)
                raise RunError(
                    f"{self.folder} holds a run with other settings ({listed}). Give another --output_dir, or remove "
                    "this one."
                )
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"settings": settings, **about}, indent=2))

    def completed_steps(self) -> list[str]:
        """Names of the steps of training that are done, in their order."""
        if not self.steps_file.exists():
            return []
        try:
            with safe_open(self.steps_file, "pt") as file:
                return json.loads(file.metadata()["steps"])
        except (SafetensorError, KeyError, OSError) as error:
            logger.warning("%s is damaged (%s): its steps are repeated.", self.steps_file, error)
            return []

    def load_steps(self) -> dict[str, torch.Tensor]:
        """The state of the model after the completed steps."""
        with safe_open(self.steps_file, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def record_steps(self, steps: list[str], state: dict[str, torch.Tensor]) -> None:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        with atomic_write(self.steps_file) as temporary:
            save_file(state, temporary, {"steps": json.dumps(steps)})

    def seal(self, checkpoint: Path) -> None:
        """Mark a checkpoint as whole, once all its files are written."""
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)
        for file in files:
            sync(file)
        hashes = {str(file.relative_to(checkpoint)): file_hash(file) for file in files}
        with atomic_write(checkpoint / SEAL) as temporary:
            temporary.write_text(json.dumps(hashes, indent=2))

    def newest_checkpoint(self, repair: bool = True) -> Path | None:
        """The newest whole checkpoint; newer ones that are damaged or half-written are passed over with a warning.

        repair: remove them (in one process), so that training writes them anew.
        """
        found = sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for checkpoint in reversed(found):
            wrong = whats_wrong(checkpoint)
            if wrong is None:
                return checkpoint
            logger.warning("%s is not whole (%s): the one before it is used.", checkpoint, wrong)
            if repair:
                shutil.rmtree(checkpoint, ignore_errors=True)
        return None


def whats_wrong(checkpoint: Path) -> str | None:
    """What a sealed checkpoint lacks; None if it is whole."""
    try:
        hashes = json.loads((checkpoint / SEAL).read_text())
    except (OSError, ValueError):
        return "writing it was cut short"
    for name, digest in hashes.items():
        path = checkpoint / name
        if not path.is_file() or file_hash(path) != digest:
            return f"{name} is damaged"
    return None


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
