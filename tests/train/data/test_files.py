import multiprocessing
import os
import signal
import stat
import threading

import pytest

from train.data.files import atomic_write, remove_unfinished


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
