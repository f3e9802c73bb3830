"""RobuSER's corruptions as audiomentations makes them, and ours with the same arguments."""

import audiomentations
import numpy as np
import pytest
import soundfile
from scipy import signal

from train.degradation import effects
from train.degradation.effects import rms

from .test_effects import SPEECH, lag, snr_db


@pytest.fixture
def noise():
    return np.random.default_rng(1).standard_normal(len(SPEECH)).astype(np.float32) / 8


def written(path, waveform):
    soundfile.write(path, waveform, 16_000, subtype="FLOAT")
    return path


def apply(transform, **parameters):
    """A transform with these parameters in place of drawn ones."""
    transform.randomize_parameters(SPEECH, 16_000)
    transform.parameters |= parameters
    transform.freeze_parameters()
    return transform(SPEECH, sample_rate=16_000)


@pytest.mark.parametrize("wanted_db", [20.0, 10.0, 0.0])
@pytest.mark.parametrize("share", [1, 2, 4], ids=["as long", "half as long", "a quarter as long"])
def test_recorded_noise_is_that_of_add_background_noise(tmp_path, noise, wanted_db, share):
    noise = noise[: len(SPEECH) // share]
    path = written(tmp_path / "noise.wav", noise)
    transform = audiomentations.AddBackgroundNoise(path, min_snr_db=wanted_db, max_snr_db=wanted_db, p=1.0)
    np.testing.assert_allclose(effects.mix_at_snr(SPEECH, noise, wanted_db), apply(transform), atol=1e-6)


@pytest.mark.parametrize("wanted_db", [30.0, 20.0, 10.0])
def test_gaussian_noise_is_that_of_add_gaussian_snr_at_the_exact_ratio(wanted_db):
    transform = audiomentations.AddGaussianSNR(min_snr_db=wanted_db, max_snr_db=wanted_db, p=1.0)
    theirs, ours = apply(transform), effects.add_gaussian(SPEECH, wanted_db, np.random.default_rng(0))
    assert snr_db(theirs, SPEECH) == pytest.approx(wanted_db, abs=0.1)
    assert snr_db(ours, SPEECH) == pytest.approx(wanted_db, abs=0.001)


def test_a_room_is_that_of_apply_impulse_response_aligned_and_at_the_former_level(tmp_path, noise):
    response = noise[:4000] * 10 ** (-3 * np.arange(4000) / 4000)
    response[250] = 3.0
    path = written(tmp_path / "room.wav", response / 4)
    theirs = apply(audiomentations.ApplyImpulseResponse(path, p=1.0, leave_length_unchanged=False))
    ours = effects.reverberate(SPEECH, response)
    aligned = theirs[250 : 250 + len(SPEECH)]
    np.testing.assert_allclose(ours, aligned * rms(SPEECH) / rms(aligned), atol=1e-5)


@pytest.mark.parametrize("kbits", [32, 16, 8])
def test_mp3_is_as_far_from_the_speech_as_that_of_mp3_compression(kbits):
    pytest.importorskip("fast_mp3_augment")
    theirs = apply(audiomentations.Mp3Compression(kbits, kbits, p=1.0))[: len(SPEECH)]
    ours = effects.through_mp3(SPEECH, kbits)
    assert abs(lag(ours, theirs)) <= 2
    # The same encoder with other settings of its quality; half the bit rate is 4 to 5 dB.
    assert np.corrcoef(ours, theirs)[0, 1] > 0.96
    assert snr_db(ours, SPEECH) == pytest.approx(snr_db(theirs, SPEECH), abs=2.5)


@pytest.mark.parametrize("percent", [2, 20, 40, 60])
def test_clipping_is_that_of_clipping_distortion(percent):
    theirs = apply(audiomentations.ClippingDistortion(0, 60, p=1.0), percentile_threshold=percent)
    np.testing.assert_allclose(effects.clip_percentile(SPEECH, percent), theirs, atol=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_a_gain_transition_is_that_of_robuser(seed):
    rng = np.random.default_rng(seed)
    start_db, end_db = rng.uniform(-30, -10, 2)
    begin = rng.integers(2 - len(SPEECH) // 2, len(SPEECH) - 1)
    transform = audiomentations.GainTransition(-30, -10, 0.5, 0.5, duration_unit="fraction", p=1.0)
    theirs = apply(transform, start_gain_db=start_db, end_gain_db=end_db, t0=int(begin))
    ours = effects.gain_transition(SPEECH, -30, -10, np.random.default_rng(seed))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


# torchaudio's add_noise, and the formulas that it replaced


@pytest.mark.parametrize("wanted_db", [-5.0, 0.0, 12.5, 40.0])
@pytest.mark.parametrize("level", [1e-3, 1.0, 30.0])
def test_a_mix_is_that_of_the_formula(noise, wanted_db, level):
    speech = (level * SPEECH).astype(np.float32)
    gain = rms(speech) / rms(noise) * 10 ** (-wanted_db / 20)
    expected = (speech + gain * noise.astype(np.float64)).astype(np.float32)
    mixed = effects.mix_at_snr(speech, noise, wanted_db)
    np.testing.assert_allclose(mixed, expected, rtol=2e-7, atol=1e-9 * level)
    assert np.mean(mixed != expected) < 1e-3


def test_a_room_is_the_convolution_to_rounding():
    response = np.random.default_rng(0).standard_normal(4000) * 10 ** (-3 * np.arange(4000) / 4000)
    response[0] = 9.0
    whole = signal.convolve(SPEECH.astype(np.float64), response, method="direct")[: len(SPEECH)]
    np.testing.assert_allclose(
        effects.reverberate(SPEECH, response), whole * rms(SPEECH) / rms(whole), atol=1e-6 * np.abs(SPEECH).max()
    )
