"""Training is killed, really, and goes on to the very weights of a run that was left alone: in processes of its own, as
users start it. `test_stops.py` stops it at every place; here it is stopped twice, and while it pushes."""

import json
import signal
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import constants

from hub_card.publish import assemble
from tests.support.forked_runs import differences, start, train
from tests.support.hub_server import TOKEN, Fault, hub_server
from tests.support.tones import write_backbone, write_corpus
from tests.support.training_runs import finish, start_training, wait_for
from train.run_folder import RunFolder


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_backbone_config):
    """Settings of a training of a few seconds whose backbone learns."""
    folder = tmp_path_factory.mktemp("resume")
    return {
        "model_name_or_path": write_backbone(folder / "backbone", tiny_backbone_config),
        "dataset_name": write_corpus(folder / "tones", n_speakers=5, n_takes=1),
        **{"arrangement": "edrl_mea", "noisy_copies": 1, "keep_last_n_layers": 1, "num_train_epochs": 6},
        **{"per_device_train_batch_size": 6, "patience": 99, "use_cpu": True, "report_to": "none"},
        **{"disable_tqdm": True, "save_strategy": "steps", "save_steps": 2},
    }


@pytest.mark.slow
def test_a_run_stopped_in_two_ways_ends_with_the_same_weights(flags, tmp_path):
    undisturbed, folder = tmp_path / "undisturbed" / "out", tmp_path / "out"  # reports name a model by its folder
    finish(start_training(flags | {"output_dir": undisturbed}))

    process = start_training(flags | {"output_dir": folder})
    wait_for(process, (folder / "checkpoint-2" / "whole.json").exists)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output[-3000:]
    assert "Traceback" not in output and "Run the same command again" in output
    assert RunFolder(folder).newest_checkpoint() is not None

    process = start_training(flags | {"output_dir": folder})
    wait_for(process, (folder / "checkpoint-12" / "whole.json").exists)
    process.kill()
    process.wait()
    assert RunFolder(folder).completed_steps() == ["fit_speech_embedding"]
    newest = max(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    with open(newest / "model.safetensors", "r+b") as file:  # and the disk loses a part of what was written last
        file.truncate(100)
    output = finish(start_training(flags | {"output_dir": folder}))
    assert "Going on after fit_speech_embedding" in output and f"{newest.name} is not whole" in output
    assert not differences(folder, undisturbed)


def push_to(url: str, cache: Path) -> None:
    constants.ENDPOINT, constants.HF_HUB_DISABLE_XET, constants.HF_HUB_CACHE = url, True, str(cache)
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "how"),
    [("PUT /storage", "stall"), ("POST .*/commit", "stall"), ("POST .*/commit", "stall_answer")],
    ids=["in the upload of weights", "before the commit", "after the commit"],
)
def test_a_run_killed_while_it_pushes_trains_no_more_and_publishes_all(flags, tmp_path, request_, how):
    folder = tmp_path / "out"
    flags = flags | {"output_dir": folder, "push_to_hub": True, "hub_model_id": "org/tones", "hub_token": TOKEN}
    with hub_server() as hub:
        hub.faults = [Fault(request_, how)]
        process = start(flags, partial(push_to, hub.url, tmp_path / "cache"))
        assert hub.stalled.wait(120), (tmp_path / "out.log").read_text()
        process.kill()
        process.join()
        weights = (folder / "model.safetensors").read_bytes()
        steps = (folder / "steps.safetensors").stat().st_mtime_ns
        shown = [commit["files"] for commit in hub.repositories["org/tones"].commits]
        assert len(shown) == 1 + (how == "stall_answer")  # the Hub's own first one, and ours where it was made
        hub.faults = []
        ended = train(flags, partial(push_to, hub.url, tmp_path / "cache"))
        assert ended.code == 0, ended.output
        assert (
            "Going on after fit_speech_embedding, train_disentanglement, fit_alignment, train_classifier"
            in ended.output
        )
        assert (folder / "steps.safetensors").stat().st_mtime_ns == steps  # written after a step of training
        assert (folder / "model.safetensors").read_bytes() == weights
        commits = hub.repositories["org/tones"].commits
        whole = assemble(folder, folder / "report.json", "org/tones")
        for files in (commit["files"] for commit in commits[1:]):
            assert files.keys() - {".gitattributes"} == whole.keys()
            assert files["model.safetensors"] == weights
            assert json.loads(files["report.json"])["results"] == json.loads(whole["report.json"])["results"]
        assert commits[-1]["files"]["README.md"] == whole["README.md"]
