"""Which errors are told in one line, and which keep their traceback."""

import errno
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from modeling_edrl_mea import RecordingError
from tests.support.forked_runs import train
from tests.support.training_runs import start_training, wait_for
from train import run
from train.failures import explained
from train.run_folder import RunError


@pytest.mark.parametrize("error", [RunError("Give another folder."), RecordingError("a.wav: empty.")])
def test_what_our_own_errors_say_is_all_that_is_said(error):
    assert explained(error) == str(error)


@pytest.mark.parametrize(
    "error", [ValueError("shapes (3,) and (4,)"), KeyError("uar"), FileNotFoundError(errno.ENOENT, "no such file")]
)
def test_a_fault_of_the_program_keeps_its_traceback(error, monkeypatch):
    assert explained(error) is None
    monkeypatch.setattr(run, "main", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        run.start([])


def test_a_write_that_torch_could_not_end_is_told_as_a_full_disk():
    """What torch.save raises where the last block does not fit."""
    assert "disk is full" in explained(RuntimeError("basic_ios::clear: iostream error"))


def full_disk_by_python():
    with open("/dev/full", "w") as file:
        file.write("something")


def full_disk_by_torch():
    torch.save({"weights": torch.zeros(100_000)}, "/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's disk that is always full")
@pytest.mark.parametrize("write", [full_disk_by_python, full_disk_by_torch])
def test_a_full_disk_is_told_in_one_line(write):
    with pytest.raises((OSError, RuntimeError)) as failed:
        write()
    said = explained(failed.value)
    assert "Make room, and run the same command again" in said and "\n" not in said


def test_a_full_disk_is_known_in_safetensors_words_too():
    said = explained(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert said.startswith("No space left on device. Make room")
    assert explained(SafetensorError("invalid header")) is None


def interrupted() -> None:
    run.main = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)


def test_ctrl_c_ends_in_one_line(tmp_path):
    ended = train({"output_dir": tmp_path / "out"}, interrupted)
    assert (ended.code, ended.output) == (130, "Stopped by Ctrl-C. Run the same command again to go on.\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at what a process has loaded")
def test_ctrl_c_while_libraries_are_loaded_ends_in_one_line(tmp_path):
    process = start_training({"output_dir": tmp_path / "out"})
    wait_for(process, lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.strip().splitlines()[-1] == "Stopped by Ctrl-C. Run the same command again to go on."
    assert "Traceback" not in output
