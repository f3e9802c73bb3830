"""Adaptation window by window: where a stream ends, what it forgets, and what silence teaches."""

import time

import numpy as np
import pytest

from modeling_edrl_mea import Adapter
from modeling_edrl_mea.correction import class_biases
from tests.conftest import noise_recordings
from tests.support.shifted_logits import EVEN, LABELS, shifted_logits


def test_without_forgetting_a_stream_ends_where_the_batch_does():
    logits = shifted_logits(60)[1]
    adapter = Adapter(LABELS)
    for row in logits:
        corrected = adapter.learn(row)
    batch = class_biases(logits, EVEN, adapter.prior, strength=adapter.strength)
    np.testing.assert_allclose(adapter.biases, batch, atol=1e-5)
    np.testing.assert_allclose(corrected, logits[-1] + adapter.biases)


def test_with_forgetting_the_adapter_follows_another_device():
    adapter, rigid = Adapter(LABELS, half_life=20), Adapter(LABELS)
    for row in (*shifted_logits(100)[1], *shifted_logits(100, shift=(-2, 0, 1, 1), seed=1)[1]):
        adapter.learn(row)
        rigid.learn(row)
    assert adapter.biases[0] > 0.8 > 0.4 > rigid.biases[0]


def test_a_restored_adapter_goes_on_as_if_nothing_had_happened(tmp_path):
    logits, speakers = shifted_logits(40)[1], ["anna", None, "bert", "anna"] * 10
    adapter = Adapter(LABELS, {"neutral": 0.4}, half_life=50, memory=30)
    for row, speaker in zip(logits[:20], speakers[:20], strict=True):
        adapter.learn(row, speaker)
    adapter.save(tmp_path / "adapter.json")
    restored = Adapter.load(tmp_path / "adapter.json")
    for row, speaker in zip(logits[20:], speakers[20:], strict=True):
        np.testing.assert_allclose(restored.learn(row, speaker), adapter.learn(row, speaker), atol=1e-9)


def test_every_speaker_has_biases_of_their_own():
    adapter = Adapter(LABELS)
    for one, other in zip(shifted_logits(60)[1], shifted_logits(60, shift=(-2, 0, 1, 1))[1], strict=True):
        adapter.learn(one, "anna")
        adapter.learn(other, "bert")
    assert adapter.speaker_biases["anna"][0] < adapter.biases[0] < adapter.speaker_biases["bert"][0]
    np.testing.assert_array_equal(adapter.correct(np.zeros(4), "nobody"), adapter.biases)


def test_a_window_costs_little_however_long_the_call():
    adapter, rows = Adapter(LABELS), shifted_logits(600)[1]
    for row in rows[:500]:
        adapter.learn(row)
    times = []
    for row in rows[500:]:
        start = time.perf_counter()
        adapter.learn(row)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.002 and len(adapter.logits) == adapter.memory


def test_a_stream_adapts_as_it_comes_and_silence_teaches_nothing(tiny_model):
    model, adapter = tiny_model("linear"), Adapter(LABELS)
    model.classifier.bias.data[0] += 1.0  # a model that says one emotion too often
    stream = model.stream_timeline(16_000, window_s=0.5, hop_s=0.5, adapter=adapter, speech_gate=None)
    stream.push(np.zeros(16_000, np.float32))
    assert not len(adapter.logits)
    speech = np.concatenate([3 * one for one in noise_recordings(8, seconds=1.5, seed=3)])
    for start in range(0, len(speech), 4000):
        stream.push(speech[start : start + 4000], speaker="anna")
    stream.finish()
    plain = model.predict_timeline(np.concatenate([np.zeros(16_000, np.float32), speech]), window_s=0.5, hop_s=0.5)
    adapted = stream.timeline.probabilities[len(plain) // 2 :].mean(0)
    assert np.abs(adapted - 0.25).max() < np.abs(plain.probabilities[len(plain) // 2 :].mean(0) - 0.25).max()


def test_an_adapter_of_other_labels_or_of_no_mix_is_refused(tiny_model):
    with pytest.raises(ValueError, match="The adapter has the labels"):
        tiny_model().stream_timeline(adapter=Adapter(["yes", "no"]))
    with pytest.raises(ValueError, match="needs a mix"):
        Adapter(LABELS, None)
