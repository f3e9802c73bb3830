"""Adaptation of a whole model to recordings without labels; its arithmetic is in test_speech_embedding.py."""

import copy

import pytest
import torch

from modeling_edrl_mea import EdrlMeaForAudioClassification
from tests.conftest import noise_recordings


def test_adaptation_changes_the_standardisation_only(tiny_model, tmp_path):
    model = tiny_model("edrl_mea").train()
    before = copy.deepcopy(model.state_dict())
    adapted = model.adapt([3 * recording for recording in noise_recordings(6, seed=3)])
    assert adapted is model and model.training
    changed = {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    room = "edrl_mea.speech_embedding."
    assert changed == {room + "mean", room + "scale", room + "n_recordings"}
    model.save_pretrained(tmp_path)
    loaded = EdrlMeaForAudioClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.edrl_mea.speech_embedding.mean, model.edrl_mea.speech_embedding.mean)


def test_few_recordings_adapt_less_than_many(tiny_model):
    elsewhere = [3 * recording for recording in noise_recordings(2, seed=3)]
    moved = []
    for times in (1, 15):  # the same mean, said by more
        model = tiny_model("linear")
        before = model.edrl_mea.speech_embedding.mean.clone()
        model.adapt(times * elsewhere)
        moved.append(float((model.edrl_mea.speech_embedding.mean - before).norm()))
    assert 0 < moved[0] < moved[1]


def test_adapting_to_one_recording_is_refused(tiny_model):
    with pytest.raises(ValueError, match="at least two recordings"):
        tiny_model("linear").adapt(noise_recordings(1))
