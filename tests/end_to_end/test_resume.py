"""Training is killed, really, and goes on to the very weights of a run that was left alone."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hub_card.publish import assemble
from tests.support.hub_server import TOKEN, Fault, hub_server
from tests.support.tones import write_backbone, write_corpus
from tests.support.training_runs import finish, start_training, wait_for
from train.run_folder import RunFolder


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_backbone_config):
    """`command(output_dir, flags, **environment)` starts a training of a few seconds whose backbone learns."""
    folder = tmp_path_factory.mktemp("resume")
    corpus = write_corpus(folder / "tones", n_speakers=5)
    backbone = write_backbone(folder / "backbone", tiny_backbone_config)
    flags = {
        **{"model_name_or_path": backbone, "dataset_name": corpus, "arrangement": "edrl_mea", "noisy_copies": 1},
        **{"keep_last_n_layers": 1, "num_train_epochs": 6, "per_device_train_batch_size": 16, "patience": 99},
        **{"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "steps", "save_steps": 2},
    }

    def start(output_dir: Path, more: dict | None = None, **environment: str) -> subprocess.Popen:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        return start_training(flags | {"output_dir": output_dir} | (more or {}), **environment)

    return start


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    """(weights, seconds of training) of a run that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    process = command(folder)
    wait_for(process, folder.exists)
    started = time.monotonic()
    wait_for(process, lambda: "train_classifier" in RunFolder(folder).completed_steps())
    seconds = time.monotonic() - started
    finish(process)
    return load_file(folder / "model.safetensors"), seconds


def assert_same_weights(folder: Path, expected: dict) -> None:
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert tensor.equal(expected[name]), name


@pytest.mark.slow
def test_a_run_killed_within_stage_one_ends_with_the_same_weights(command, undisturbed, tmp_path):
    process = command(tmp_path)
    wait_for(process, (tmp_path / "checkpoint-6" / "whole.json").exists)
    process.kill()
    process.wait()
    assert RunFolder(tmp_path).completed_steps() == ["fit_speech_embedding"]
    newest = max(tmp_path.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    with open(newest / "model.safetensors", "r+b") as file:  # and the disk loses a part of what was written last
        file.truncate(100)
    output = finish(command(tmp_path))
    assert "Going on after fit_speech_embedding" in output and f"{newest.name} is not whole" in output
    assert_same_weights(tmp_path, undisturbed[0])


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(command, undisturbed, tmp_path):
    process = command(tmp_path)
    wait_for(process, (tmp_path / "checkpoint-2" / "whole.json").exists)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output[-3000:]
    assert "Traceback" not in output and "Run the same command again" in output
    assert RunFolder(tmp_path).newest_checkpoint() is not None
    finish(command(tmp_path))
    assert_same_weights(tmp_path, undisturbed[0])


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(2))  # test_stops.py stops at every place
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(command, undisturbed, tmp_path, trial):
    weights, seconds = undisturbed
    folder = tmp_path / "out"
    process = command(folder)
    wait_for(process, folder.exists)  # imports are over: whatever it does from now on can be cut short
    started = time.monotonic()
    time.sleep(random.Random(trial).uniform(0.0, 1.1) * seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = RunFolder(folder).completed_steps() if folder.exists() else []
    checkpoints = sorted(path.name for path in folder.glob("checkpoint-*"))
    print(f"killed {time.monotonic() - started:.1f} s after its start; steps done {state}; {checkpoints}")
    output = finish(command(folder))
    for step in state:
        assert step in output  # "Going on after …"
    assert_same_weights(folder, weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "how"),
    [("PUT /storage", "stall"), ("POST .*/commit", "stall"), ("POST .*/commit", "stall_answer")],
    ids=["in the upload of weights", "before the commit", "after the commit"],
)
def test_a_run_killed_while_it_pushes_trains_no_more_and_publishes_all(command, tmp_path, request_, how):
    folder, push = tmp_path / "out", {"push_to_hub": True, "hub_model_id": "org/tones", "hub_token": TOKEN}
    with hub_server() as hub:
        place = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
        hub.faults = [Fault(request_, how)]
        process = command(folder, push, **place)
        wait_for(process, hub.stalled.is_set)
        process.kill()
        process.wait()
        weights = (folder / "model.safetensors").read_bytes()
        steps = (folder / "steps.safetensors").stat().st_mtime_ns
        shown = [commit["files"] for commit in hub.repositories["org/tones"].commits]
        assert len(shown) == 1 + (how == "stall_answer")  # the Hub's own first one, and ours where it was made
        hub.faults = []
        output = finish(command(folder, push, **place))
        assert "Going on after fit_speech_embedding, train_disentanglement, fit_alignment, train_classifier" in output
        assert (folder / "steps.safetensors").stat().st_mtime_ns == steps  # written after a step of training
        assert (folder / "model.safetensors").read_bytes() == weights
        commits = hub.repositories["org/tones"].commits
        whole = assemble(folder, folder / "report.json", "org/tones")
        for files in (commit["files"] for commit in commits[1:]):
            assert files.keys() - {".gitattributes"} == whole.keys()
            assert files["model.safetensors"] == weights
            assert json.loads(files["report.json"])["results"] == json.loads(whole["report.json"])["results"]
        assert commits[-1]["files"]["README.md"] == whole["README.md"]
