import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from train.data.files import PACKAGES, ROOT, atomic_write, fingerprint_of_code, imported_files, remove_unfinished

RECIPES = "train.benchmark.recipes"


def test_a_file_gets_its_name_only_when_it_is_whole(tmp_path):
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path and not (tmp_path / "file").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "whole"}


@pytest.mark.parametrize("written", ["", "ha"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, written, error):
    (tmp_path / "file").write_text("old")
    with pytest.raises(error), atomic_write(tmp_path / "file") as temporary:
        if written:
            temporary.write_text(written)
        raise error
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def die_within(path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("ha")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    (tmp_path / "file.json").write_text("old")
    writer = multiprocessing.get_context("fork").Process(target=die_within, args=[tmp_path / "file.json"])
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert (tmp_path / "file.json").read_text() == "old"
    assert [path.name for path in tmp_path.glob("*.json")] == ["file.json"]
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_block_that_writes_nothing_is_an_error_and_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "old"


def test_writers_at_the_same_time_do_not_mix(tmp_path):
    barrier = threading.Barrier(4, timeout=60)

    def write(letter):
        with atomic_write(tmp_path / "file") as temporary:
            for _ in range(50):
                with open(temporary, "a") as file:
                    file.write(letter)
            barrier.wait()

    writers = [threading.Thread(target=write, args=[letter]) for letter in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    [file] = tmp_path.iterdir()
    assert file.read_text() in {letter * 50 for letter in "abcd"}


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_write(tmp_path / "whole") as temporary:
        temporary.write_text("")
    plain, whole = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole"))
    assert whole == plain


@pytest.fixture(scope="module")
def copied_code(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("code")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_code_is_known_by_every_file_that_importing_it_runs():
    listing = f"import sys, {RECIPES}; print(*(m for m in sys.modules if m.split('.')[0] in {PACKAGES}))"
    imported = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(imported.stdout.split()) <= set(imported_files(RECIPES))


@pytest.mark.parametrize(
    "file",
    [
        "modeling_edrl_mea/closed_form.py",
        "train/degradation/effects.py",
        "train/data/dataset.py",
        "modeling_edrl_mea/frames.py",
    ],
)
def test_code_has_another_fingerprint_where_a_file_it_imports_changes(copied_code, file):
    before, path = fingerprint_of_code(RECIPES, copied_code), copied_code / file
    path.write_text(path.read_text() + "\nADDED = 1\n")
    assert fingerprint_of_code(RECIPES, copied_code) != before


def test_comments_docstrings_and_files_not_imported_leave_the_fingerprint_of_code(copied_code):
    before, path = fingerprint_of_code(RECIPES, copied_code), copied_code / "train" / "trainer.py"
    path.write_text('"""Another docstring."""\n' + path.read_text().split('"""', 2)[2] + "\n# a comment\n")
    (copied_code / "train" / "run.py").write_text("ADDED = 1")
    assert fingerprint_of_code(RECIPES, copied_code) == before
