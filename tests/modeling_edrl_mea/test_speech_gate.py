"""No emotion is named where nobody speaks."""

import sys

import numpy as np
import pytest
import torch

from modeling_edrl_mea import SpeechGate, load_recording, speech_gate
from modeling_edrl_mea.recordings import find_audio
from tests.support.voice import vowels

RATE = 16_000
try:
    import silero_vad  # noqa: F401

    KINDS = ["silero", "energy"]
except ImportError:
    KINDS = ["energy"]


def white_noise(level_db: float, seconds: float = 3.0) -> np.ndarray:
    return 10 ** (level_db / 20) * np.random.default_rng(0).standard_normal(int(seconds * RATE))


@pytest.mark.parametrize("kind", KINDS)
def test_a_voice_is_speech_and_silence_and_steady_noise_are_not(kind):
    gate = SpeechGate(kind)
    assert 0.2 < gate.share(vowels(1.5)) < 1
    for sound in (np.zeros(RATE), np.full(RATE, 0.3), white_noise(-50), white_noise(-10)):
        assert gate.share(sound) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_pause_is_not_counted(kind):
    voice = vowels(1.5)
    share = SpeechGate(kind).share(np.concatenate([voice, np.zeros_like(voice)]))
    assert share == pytest.approx(SpeechGate(kind).share(voice) / 2, abs=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_may_hear_at_another_rate(kind):
    gate = SpeechGate(kind, sampling_rate=8_000)
    assert gate.share(vowels(1.5, rate=8_000)) == pytest.approx(SpeechGate(kind).share(vowels(1.5)), abs=0.15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_samples", [1, 400, 3_000])
def test_what_is_too_short_to_be_an_utterance_is_none(kind, n_samples):
    assert SpeechGate(kind).share(vowels(1.5)[2_000:][:n_samples]) == 0


def test_without_a_gate_all_that_is_not_silent_counts():
    gate = SpeechGate(None)
    assert gate.share(white_noise(-50)) == 1 and gate.share(np.zeros(RATE)) == 0


def test_an_unknown_gate_is_named():
    with pytest.raises(ValueError, match="speech_gate='webrtc' is none of"):
        SpeechGate("webrtc")


@pytest.fixture
def fresh(monkeypatch):
    """silero-vad as if it had not been imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "silero_vad"]:
        monkeypatch.delitem(sys.modules, name)
    speech_gate.silero.cache_clear()
    yield monkeypatch
    speech_gate.silero.cache_clear()


def test_without_the_package_the_extra_is_named_and_loudness_decides(fresh):
    fresh.setitem(sys.modules, "silero_vad", None)
    assert SpeechGate().kind == "energy"
    with pytest.raises(ImportError, match=r'pip install "edrl-mea\[speech\]"'):
        SpeechGate("silero")


@pytest.mark.skipif("silero" not in KINDS, reason="needs silero-vad: pip install -e '.[speech]'")
def test_the_gate_leaves_torchs_threads_alone(fresh):
    torch.set_num_threads(2)
    try:
        SpeechGate("silero")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif("silero" not in KINDS, reason="needs silero-vad: pip install -e '.[speech]'")
def test_real_speech_is_heard_and_barks_rain_and_rooms_are_not(shared_data):
    gate = SpeechGate("silero")
    spoken = [gate.share(load_recording(path)) for path in find_audio(shared_data / "emodb")[::80]]
    assert all(spoken)
    noises = find_audio(shared_data / "noise" / "esc10")[::15] + find_audio(shared_data / "noise" / "rooms")
    assert np.mean([gate.share(load_recording(path)[: 3 * RATE]) > 0 for path in noises]) < 0.1
