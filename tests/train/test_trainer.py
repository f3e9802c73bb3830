"""The two stages, step by step."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_edrl_mea import closed_form
from modeling_edrl_mea.embeddings import Embeddings
from tests.support.tones import write_backbone
from train.data import embeddings as embeddings_room
from train.data.embeddings import EmbeddingCache
from train.run_folder import RunFolder
from train.trainer import EdrlMeaTrainer

from .test_run import arguments, embeddings, new_model


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tiny_backbone_config):
    return write_backbone(tmp_path_factory.mktemp("backbone"), tiny_backbone_config)


STEPS = {
    "linear": ["fit_speech_embedding", "train_classifier"],
    "edrl": ["fit_speech_embedding", "start_disentanglement", "train_disentanglement"],
    "edrl_mea": ["fit_speech_embedding", "train_disentanglement", "fit_alignment", "train_classifier"],
}


@pytest.mark.parametrize("arrangement", STEPS)
def test_an_arrangement_is_trained_in_its_order_and_each_step_is_recorded(tmp_path, backbone, arrangement):
    model = new_model(backbone, arrangement=arrangement)
    EdrlMeaTrainer(model, arguments(tmp_path, num_train_epochs=1), embeddings(model, 16)).train(True)
    assert RunFolder(tmp_path).completed_steps() == STEPS[arrangement]


def test_a_run_that_fails_goes_on_after_its_last_step_to_the_same_weights(tmp_path, backbone, monkeypatch):
    def trainer(folder):
        torch.manual_seed(0)
        model = new_model(backbone, arrangement="edrl_mea")
        return EdrlMeaTrainer(model, arguments(tmp_path / folder, num_train_epochs=1), embeddings(model))

    undisturbed = trainer("whole")
    undisturbed.train(True)
    failing = trainer("cut")
    with monkeypatch.context() as patched:
        patched.setattr(closed_form, "train_classifier", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            failing.train(True)
    assert RunFolder(tmp_path / "cut").completed_steps() == STEPS["edrl_mea"][:-1]
    monkeypatch.setattr(closed_form, "fit_alignment", lambda *_: pytest.fail("repeated"))
    resumed = trainer("cut")
    resumed.train(True)
    expected = undisturbed.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


def test_stage_two_leaves_stage_one_untouched(tmp_path, backbone):
    model = new_model(backbone, arrangement="edrl_mea")
    data = embeddings(model)
    trainer = EdrlMeaTrainer(model, arguments(tmp_path), data)
    trainer.fit_speech_embedding()
    trainer.train_disentanglement()
    before = {name: tensor.clone() for name, tensor in model.named_parameters() if not name.startswith("classifier.")}
    trainer.fit_alignment()
    trainer.train_classifier()
    after = dict(model.named_parameters())
    assert model.stage == "alignment"
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_every_loss_term_is_logged(tmp_path, backbone):
    model = new_model(backbone, arrangement="edrl")
    trainer = EdrlMeaTrainer(model, arguments(tmp_path, logging_steps=1), embeddings(model))
    trainer.train()
    logged = set().union(*trainer.state.log_history)
    terms = ("classification", "intra_class", "reconstruction", "decorrelation", "shared_invariance")
    assert {f"loss_{term}" for term in terms} <= logged


def private_memory() -> int:
    """Bytes that the system cannot take back by forgetting pages of files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_training_on_more_statistics_than_memory_takes_bounded_memory(tmp_path, backbone, monkeypatch):
    monkeypatch.setattr(embeddings_room, "HELD_IN_MEMORY", 2**20)
    model = new_model(backbone, arrangement="edrl_mea")
    cache, rng, chunks = EmbeddingCache(model, tmp_path), np.random.default_rng(0), []
    for number in range(20):  # 20 × 50,000 × 3 × 64 float32: 768 MB
        chunks.append(tmp_path / f"{number}.npy")
        np.save(chunks[-1], rng.standard_normal((50_000, 3, 64), dtype=np.float32))
    before = private_memory()
    statistics = cache.joined(chunks)
    labels = torch.arange(len(statistics)) % 4
    data = Embeddings(statistics, labels, ["a"] * len(labels), torch.arange(len(labels)))
    trainer = EdrlMeaTrainer(model, arguments(tmp_path / "out", max_steps=20), data)
    trainer.train()
    grown = private_memory() - before
    print(f"{statistics.nbytes / 2**20:.0f} MiB of statistics, memory grew by {grown / 2**20:.0f} MiB")
    assert grown < 0.25 * statistics.nbytes
