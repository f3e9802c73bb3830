"""Two processes train what one does; one of them dying ends the run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.tones import write_backbone, write_corpus
from tests.support.training_runs import finish, start_training, wait_for
from train.data.dataset import EpochBatches

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


LAUNCHERS = {
    "one process": lambda: [sys.executable],
    "torchrun": lambda: [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", str(free_port())],
    "accelerate": lambda: [
        *(BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())),
    ],
}


@pytest.fixture(scope="module")
def launch(tmp_path_factory, tiny_backbone_config):
    """launch(launcher, output_dir, **flags) starts a training of tones by `LAUNCHERS[launcher]`."""
    folder = tmp_path_factory.mktemp("distributed")
    corpus = write_corpus(folder / "tones", n_speakers=5)
    for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop"):
        setattr(tiny_backbone_config, name, 0.0)  # else the processes draw other random numbers than one does
    backbone = write_backbone(folder / "backbone", tiny_backbone_config)

    def start(launcher: str, output_dir: Path, **flags) -> subprocess.Popen:
        flags = {
            **{"model_name_or_path": backbone, "dataset_name": corpus, "output_dir": output_dir},
            **{"arrangement": "edrl_mea", "num_train_epochs": 2, "use_cpu": True, "report_to": "none"},
            **{"disable_tqdm": True, "max_grad_norm": 1.0, "noisy_copies": 1},
            "n_components": 16,  # of 64 the last are nearly used up, and rounding decides what they are
            **({} if launcher == "one process" else {"ddp_backend": "gloo"}),
            **flags,
        }
        return start_training(flags, LAUNCHERS[launcher]())

    return start


def weights_of(process: subprocess.Popen, folder: Path, n_processes: int) -> dict[str, torch.Tensor]:
    finish(process)
    assert json.loads((folder / "run.json").read_text())["processes"] == n_processes
    return load_file(folder / "model.safetensors")


def assert_close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


# 52 training recordings and batches of 10: the last one is uneven.
FROZEN = {"per_device_train_batch_size": 10}
LEARNING = {"keep_last_n_layers": 1, "per_device_train_batch_size": 10, "learning_rate": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
@pytest.mark.parametrize("settings", [FROZEN, LEARNING], ids=["frozen backbone", "backbone learns"])
def test_two_processes_end_with_the_weights_of_one_with_the_doubled_batch(launch, tmp_path, launcher, settings):
    doubled = settings | {"per_device_train_batch_size": 2 * settings["per_device_train_batch_size"]}
    expected = weights_of(launch("one process", tmp_path / "one", **doubled), tmp_path / "one", 1)
    found = weights_of(launch(launcher, tmp_path / "two", **settings), tmp_path / "two", 2)
    assert_close(found, expected)


@pytest.mark.slow
def test_one_process_dying_ends_the_run(launch, tmp_path):
    process = launch("torchrun", tmp_path, num_train_epochs=5000, patience=5000, **FROZEN)
    wait_for(process, lambda: list(tmp_path.glob("checkpoint-*")))
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), 9)
    output, _ = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "Signal 9" in output or "SIGKILL" in output, output[-3000:]


@pytest.mark.parametrize(("n", "size", "n_processes"), [(52, 20, 2), (41, 20, 2), (7, 64, 2), (100, 9, 3), (3, 3, 3)])
def test_an_epoch_has_every_recording_once_in_the_batches_of_one_process(n, size, n_processes):
    dataset = range(n)
    shares = [list(EpochBatches(dataset, size, 0, rank, n_processes)) for rank in range(n_processes)]
    assert len({len(share) for share in shares}) == 1 and all(batch for share in shares for batch in share)
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(n))
    whole = list(EpochBatches(dataset, size, 0))
    joined = [sum(parts, []) for parts in zip(*shares, strict=True)]
    assert joined[:-1] == whole[: len(joined) - 1]
    assert sum(joined, []) == sum(whole, [])


def test_recordings_of_like_length_share_a_batch_where_asked_for():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1_000, 100_000, 400).tolist()
    padded = {}
    for given in (None, lengths):
        batches = EpochBatches(range(400), 20, 0, lengths=given)
        first = list(batches)
        assert sorted(sum(first, [])) == list(range(400))
        padded[given is None] = sum(max(lengths[row] for row in batch) * len(batch) for batch in first) / sum(lengths)
        batches.set_epoch(1)
        assert list(batches) != first
        batches.set_epoch(0)
        assert list(batches) == first  # as a run that goes on needs it
    assert padded[False] < 1.3 < 1.8 < padded[True]


def test_other_epochs_and_seeds_have_another_order():
    batches = EpochBatches(range(50), 50, seed=0)
    first = list(batches)
    batches.set_epoch(1)
    assert list(batches) != first and list(EpochBatches(range(50), 50, seed=1)) != first
    batches.set_epoch(0)
    assert list(batches) == first
