"""A stop at any step, by any signal, in both save strategies, ends with the uninterrupted run's weights."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.tones import write_backbone, write_corpus
from train import run
from train.trainer import EdrlMeaTrainer

N_EPOCHS, STEPS_PER_EPOCH = 3, 3
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]


@pytest.fixture(scope="module")
def train(tmp_path_factory, tiny_backbone_config):
    """`train(output_dir, strategy, stop=(step, signal))` runs in a process of its own and gives its exit code."""
    folder = tmp_path_factory.mktemp("stops")
    corpus = write_corpus(folder / "tones", n_speakers=5)
    backbone = write_backbone(folder / "backbone", tiny_backbone_config)
    flags = {
        **{"model_name_or_path": backbone, "dataset_name": corpus, "arrangement": "edrl_mea", "noisy_copies": 0},
        **{"keep_last_n_layers": 1, "num_train_epochs": N_EPOCHS, "per_device_train_batch_size": 12, "patience": 2},
        **{"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_steps": 1, "save_total_limit": 2},
        "embedding_cache": folder / "embeddings",
    }

    def start(output_dir: Path, strategy: str, stop: tuple | None = None) -> int:
        given = flags | {"output_dir": output_dir, "save_strategy": strategy}
        argv = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        child = multiprocessing.get_context("fork").Process(target=_train, args=(argv, stop))
        child.start()
        child.join(300)
        return child.exitcode

    return start


def _train(argv: list[str], stop: tuple | None) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    made, step = [], EdrlMeaTrainer.training_step

    def step_and_stop(self, *args, **kwargs):
        made.append(None)
        if stop is not None and len(made) == stop[0]:
            os.kill(os.getpid(), stop[1])
        return step(self, *args, **kwargs)

    EdrlMeaTrainer.training_step = step_and_stop
    run.main(argv)


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    assert train(folder, "epoch") == 0
    return load_file(folder / "model.safetensors")


def assert_goes_on_to(expected: dict, train, folder: Path, strategy: str, step: int, number: int) -> None:
    code = train(folder, strategy, (step, number))
    assert code in (128 + number, -number), (strategy, step, number, code)
    assert train(folder, strategy) == 0
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert [name for name in weights if not weights[name].equal(expected[name])] == [], (strategy, step, number)


def test_a_stop_in_the_last_step_of_an_epoch_changes_nothing(train, undisturbed, tmp_path):
    assert_goes_on_to(undisturbed, train, tmp_path / "out", "steps", STEPS_PER_EPOCH, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_a_stop_at_every_step_changes_nothing(train, undisturbed, tmp_path, strategy, number):
    for step in range(1, N_EPOCHS * STEPS_PER_EPOCH + 1):
        assert_goes_on_to(undisturbed, train, tmp_path / str(step), strategy, step, number)
    print(f"{strategy}, {number.name}: tried {step}, held {step}")
