"""What a run finds in its output folder: its own, somebody else's, another run, or no folder at all."""

import os
import signal
import stat
from pathlib import Path

import pytest
import torch

from train import run_folder
from train.data.embeddings import CacheError, make_folder
from train.run_folder import RunError, RunFolder

OPENED = {"learning_rate": 0.1}


@pytest.mark.parametrize("name", ["checkpoint-500/trainer_state.json", "config.json", "a.tmp", "checkpoint-best/x"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=f"something else \\({name.split('/')[0]}.*--output_dir"):
        RunFolder(tmp_path).lock()
    assert (tmp_path / name).read_text() == "mine"


def test_only_our_own_unfinished_files_are_removed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(OPENED, {})
    theirs = [tmp_path / name for name in ("thesis.tmp", "run.json.tmp", "notes.0123456789ab.tmp", "run.json.copy.tmp")]
    for path in (*theirs, tmp_path / "run.json.0123456789ab.tmp"):
        path.write_text("half")
    folder.open(OPENED, {})
    assert sorted(tmp_path.glob("*.tmp")) == sorted(theirs)


def test_a_folder_that_is_called_a_checkpoint_is_none_without_a_number(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(OPENED, {})
    for name in ("checkpoint-best", "checkpoint-12-old"):
        (tmp_path / name).mkdir()
    assert folder.newest_checkpoint() is None
    assert (tmp_path / "checkpoint-best").is_dir() and (tmp_path / "checkpoint-12-old").is_dir()


def test_a_second_run_in_the_folder_is_refused_until_the_first_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    reader, writer = os.pipe()
    first = os.fork()
    if not first:
        folder = RunFolder(tmp_path)  # whose end would give the lock back
        folder.lock()
        os.write(writer, b"locked")
        signal.pause()
    try:
        assert os.read(reader, 6) == b"locked"
        with pytest.raises(RunError, match="Another run is writing to .*--output_dir"):
            RunFolder(tmp_path).lock()
    finally:
        os.kill(first, 9)
        os.waitpid(first, 0)
    RunFolder(tmp_path).lock()


def test_a_place_that_cannot_be_written_is_named_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match=f"{place} cannot be written .*--output_dir"):
            RunFolder(place).lock()
        with pytest.raises(CacheError, match=f"{place}: .*--embedding_cache"):
            make_folder(place)
    refuse = OSError(30, os.strerror(30))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(refuse))
    with pytest.raises(RunError, match="Read-only file system.*--output_dir"):
        RunFolder(tmp_path / "new").lock()


def test_steps_and_checkpoints_of_another_run_are_not_believed(tmp_path):
    folders = []
    for number in range(2):
        folders.append(RunFolder(tmp_path / str(number)))
        folders[-1].open({"seed": number}, {})
        folders[-1].record_steps(["fit_speech_embedding"], {"mean": torch.full((2,), float(number))})
        checkpoint = folders[-1].folder / "checkpoint-3"
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        folders[-1].seal(checkpoint)
        assert folders[-1].completed_steps() and folders[-1].newest_checkpoint()
    for name in ("steps.safetensors", "checkpoint-3"):
        (folders[1].folder / name).rename(tmp_path / "away" if name == "steps.safetensors" else tmp_path / "gone")
        (folders[0].folder / name).rename(folders[1].folder / name)
    assert folders[1].completed_steps() == [] and folders[1].newest_checkpoint() is None


def test_steps_are_as_readable_as_any_new_file(tmp_path):
    folder, before = RunFolder(tmp_path), os.umask(0o022)
    try:
        folder.open(OPENED, {})
        folder.record_steps(["fit_speech_embedding"], {"mean": torch.zeros(2)})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}
