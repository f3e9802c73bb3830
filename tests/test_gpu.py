"""What only a GPU can show: training in bf16, its memory, and that it says what the CPU says."""

import pytest
import torch
from transformers import TrainingArguments

from modeling_edrl_mea import EdrlMeaForAudioClassification
from train.corpora import load_corpus
from train.evaluation import answers_of
from train.speech import Speech
from train.trainer import EdrlMeaTrainer

from .conftest import noise_recordings
from .tones import write_backbone, write_corpus

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def speech(tmp_path):
    return Speech(load_corpus(str(write_corpus(tmp_path / "tones", 5))), "tones")


@pytest.fixture
def new_model(tmp_path, tiny_backbone_config, speech):
    folder = write_backbone(tmp_path / "backbone", tiny_backbone_config)
    labels = dict(enumerate(speech.dataset.features["label"].names))
    return lambda **kwargs: EdrlMeaForAudioClassification.from_backbone(folder, id2label=labels, **kwargs)


@pytest.mark.parametrize("extra", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}])
def test_both_stages_learn_in_bfloat16_with_the_backbone(tmp_path, speech, new_model, extra):
    args = TrainingArguments(
        str(tmp_path / "out"), num_train_epochs=12, learning_rate=1e-2, bf16=True, report_to="none", disable_tqdm=True,
        save_strategy="no", **extra,
    )  # fmt: skip
    trainer = EdrlMeaTrainer(new_model(arrangement="edrl_mea"), args, speech, backbone_learning_rate=1e-3)
    trainer.train()
    answers = answers_of(trainer.model, speech.embed(trainer.cache()))
    assert (answers.probabilities.argmax(1) == answers.references).mean() > 0.9
    assert trainer.model.alignment.rotations.dtype == torch.float32


def test_gpu_and_cpu_say_the_same(new_model):
    model = new_model(arrangement="edrl").eval()
    inputs = model.feature_extractor()(noise_recordings(3), sampling_rate=16_000, return_tensors="pt")
    expected = model(**inputs).logits
    found = model.cuda()(**inputs.to("cuda")).logits.cpu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_a_compiled_model_says_the_same(new_model):
    model = new_model(arrangement="edrl").eval().cuda()
    inputs = model.feature_extractor()(noise_recordings(1), sampling_rate=16_000, return_tensors="pt").to("cuda")
    expected = model(**inputs).logits
    torch.testing.assert_close(torch.compile(model)(**inputs).logits, expected, atol=1e-4, rtol=1e-3)
