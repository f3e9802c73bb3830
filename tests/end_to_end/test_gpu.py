"""Training as a GPU does it: bf16, gradient accumulation, activation checkpointing, compiled. On a CPU where it can.

These tests import nothing that needs `datasets`, `evaluate` or audiomentations: machines with a GPU may lack them.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import TrainingArguments

from modeling_edrl_mea import EdrlMeaForAudioClassification
from tests.conftest import noise_recordings
from tests.support.tones import write_backbone, write_corpus
from train.data.dataset import SpeechDataset
from train.evaluation.predictions import evaluate
from train.trainer import EdrlMeaTrainer

ROOT = Path(__file__).resolve().parents[2]
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
on_gpu = pytest.param("cuda", marks=needs_gpu)
FOUR = ("anger", "happiness", "neutral", "sadness")


def read_corpus(folder: Path, test_speakers=()) -> tuple[SpeechDataset, SpeechDataset]:
    """(speech of other speakers, of these) of the four emotions in a folder with metadata.csv."""
    with open(folder / "metadata.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["emotion"] in FOUR]

    def speech(rows):
        columns = {
            "audio": [str(folder / row["file_name"]) for row in rows],
            "label": [FOUR.index(row["emotion"]) for row in rows],
            "speaker": [row["speaker"] for row in rows],
            "corpus": [folder.name] * len(rows),
        }
        return SpeechDataset(columns, folder.name)

    held_out = [row for row in rows if row["speaker"] in test_speakers]
    return speech([row for row in rows if row not in held_out]), speech(held_out) if held_out else None


@pytest.fixture(autouse=True)
def settings_of_one_test():
    """accelerate keeps its first precision, and transformers compilation in the environment, for the whole process."""
    AcceleratorState._reset_state()
    with mock.patch.dict(os.environ):
        yield
    AcceleratorState._reset_state()


@pytest.fixture
def tones(tmp_path):
    return read_corpus(write_corpus(tmp_path / "tones", 5))[0]


@pytest.fixture
def new_model(tmp_path, tiny_backbone_config):
    folder = write_backbone(tmp_path / "backbone", tiny_backbone_config)
    return lambda **kwargs: EdrlMeaForAudioClassification.from_backbone(
        folder, id2label=dict(enumerate(FOUR)), **kwargs
    )


def arguments(folder: Path, device: str, **settings) -> TrainingArguments:
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": device == "cpu"}
    return TrainingArguments(str(folder), **(quiet | {"learning_rate": 1e-2} | settings))


def accuracy(trainer: EdrlMeaTrainer, speech: SpeechDataset) -> float:
    answers = evaluate(trainer.model, speech.embed(trainer.cache()))
    return (answers.probabilities.argmax(1) == answers.references).mean()


WAYS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
}


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), on_gpu])
@pytest.mark.parametrize("way", WAYS)
def test_both_stages_learn_in_bfloat16_with_the_backbone(tmp_path, tones, new_model, way, device):
    args = arguments(tmp_path / "out", device, num_train_epochs=12, bf16=True, **WAYS[way])
    trainer = EdrlMeaTrainer(new_model(arrangement="edrl_mea"), args, tones, backbone_learning_rate=1e-3)
    trainer.train()
    assert accuracy(trainer, tones) > 0.9
    assert trainer.model.alignment.rotations.dtype == torch.float32
    assert trainer.model.device.type == device


@pytest.mark.parametrize("device", ["cpu", on_gpu])
def test_above_a_frozen_backbone_embeddings_are_made_on_the_device_of_training(tmp_path, tones, new_model, device):
    model, made_on = new_model(arrangement="edrl"), set()
    model.freeze_backbone()
    model.backbone.register_forward_pre_hook(lambda module, _: made_on.add(module.device.type))
    trainer = EdrlMeaTrainer(model, arguments(tmp_path, device, num_train_epochs=12, bf16=True), tones)
    trainer.train()
    assert made_on == {device}
    assert accuracy(trainer, tones) > 0.9


@pytest.mark.parametrize("device", ["cpu", on_gpu])
@pytest.mark.parametrize("kept", [1, 2])
def test_activation_checkpointing_changes_no_gradient(new_model, kept, device):
    """Also under layers that learn above frozen ones, where nothing that goes into them needs a gradient."""
    model = new_model(arrangement="edrl")
    for settings in (model.config.backbone_config, model.backbone.config):
        settings.layerdrop = 0.0
    model.freeze_backbone(kept)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    model = model.to(device).train()
    inputs = model.feature_extractor()(noise_recordings(4), sampling_rate=16_000, return_tensors="pt").to(device)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**inputs, labels=torch.arange(4, device=device)).loss.backward()
        gradients.append({name: part.grad for name, part in model.named_parameters() if part.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(".layers.1." in name for name in gradients[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("device", [on_gpu])
def test_gpu_and_cpu_say_the_same(new_model, device):
    model = new_model(arrangement="edrl").eval()
    inputs = model.feature_extractor()(noise_recordings(3), sampling_rate=16_000, return_tensors="pt")
    expected = model(**inputs).logits
    found = model.to(device)(**inputs.to(device)).logits.cpu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), on_gpu])
def test_a_compiled_model_says_the_same(new_model, device):
    model = new_model(arrangement="edrl").eval().to(device)
    inputs = model.feature_extractor()(noise_recordings(1), sampling_rate=16_000, return_tensors="pt").to(device)
    expected = model(**inputs).logits
    compiled = torch.compile(model, backend="inductor" if device == "cuda" else "aot_eager")  # g++ takes minutes
    torch.testing.assert_close(compiled(**inputs).logits, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("device", [on_gpu])
def test_emodb_is_learned_in_two_stages_with_the_backbone(tmp_path, shared_data, device):
    """Chance is 25%; wavlm-compact's last three layers learn for ten epochs, two speakers are held out."""
    training, held_out = read_corpus(shared_data / "emodb", ("03", "08"))
    backbone = ROOT / "checkpoints" / "wavlm-compact"
    model = EdrlMeaForAudioClassification.from_backbone(backbone, id2label=dict(enumerate(FOUR)))
    model.freeze_backbone(3)
    settings = {"num_train_epochs": 10, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    args = arguments(tmp_path, device, bf16=True, gradient_checkpointing=True, **settings | {"learning_rate": 1e-3})
    trainer = EdrlMeaTrainer(model, args, training, backbone_learning_rate=5e-5)
    trainer.train()
    reached = accuracy(trainer, held_out)
    print(f"EMO-DB, two held-out speakers: {100 * reached:.1f}% right")
    assert reached > 0.5


WITHOUT = """
import sys
for name in ("datasets", "evaluate", "audiomentations", "jsonschema", "matplotlib"):
    sys.modules[name] = None
import tests.test_gpu
"""


@pytest.mark.slow  # a fresh process
def test_what_trains_on_a_gpu_imports_on_a_machine_without_datasets():
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
