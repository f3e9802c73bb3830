import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from train.degradation import effects as degradation
from train.degradation.effects import keyed_generator, mix_at_snr, rms


def speech_like(num_samples: int, seed: int = 0) -> np.ndarray:
    """Harmonics of a gliding pitch under syllables at 4 Hz."""
    time = np.arange(num_samples) / 16_000
    phase = 2 * np.pi * (120 * time + 15 * time**2)
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return (0.1 * (voice + 0.05 * noise) * (1.1 + np.sin(8 * np.pi * time))).astype(np.float32)


SPEECH = speech_like(32_000)


def lag(heard: np.ndarray, said: np.ndarray, at_most: int = 2000) -> int:
    """Samples by which one waveform comes after the other."""
    correlation = np.correlate(np.pad(heard, at_most), said, "valid")
    return int(correlation.argmax()) - at_most


def snr_db(mixed, speech):
    return 20 * np.log10(rms(speech) / rms(mixed.astype(np.float64) - speech))


@settings(max_examples=40, deadline=None)
@given(
    speech_length=st.integers(400, 20_000),
    noise_length=st.integers(50, 40_000),
    wanted_db=st.floats(-20, 40),
    level=st.floats(1e-3, 10),
    seed=st.integers(0, 99),
)
def test_a_mix_has_the_snr_asked_for(speech_length, noise_length, wanted_db, level, seed):
    rng = np.random.default_rng(seed)
    speech = (level * speech_like(speech_length, seed)).astype(np.float32)
    mixed = mix_at_snr(speech, rng.standard_normal(noise_length).astype(np.float32), wanted_db, rng)
    assert mixed.shape == speech.shape and mixed.dtype == np.float32
    assert snr_db(mixed, speech) == pytest.approx(wanted_db, abs=0.01)


def test_short_noise_is_repeated_from_a_random_start():
    noise = np.arange(1, 101, dtype=np.float32)
    segments = [degradation.noise_segment(noise, 250, np.random.default_rng(seed)) for seed in range(10)]
    for segment in segments:
        assert np.array_equal(segment[:100], segment[100:200])
        assert set(segment[:100]) == set(noise)
    assert len({segment[0] for segment in segments}) > 3


def test_a_bark_between_silences_is_found():
    noise = np.zeros(80_000, np.float32)
    noise[70_000:72_000] = 1
    for seed in range(20):
        assert rms(degradation.noise_segment(noise, 8_000, np.random.default_rng(seed))) > 0


@pytest.mark.parametrize("noise", [np.zeros(0, np.float32), np.zeros(100, np.float32)])
@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)])
def test_empty_and_silent_noise_are_refused(noise, rng):
    with pytest.raises(ValueError, match="empty or silent"):
        mix_at_snr(SPEECH, noise, 10, rng)


def test_silent_speech_stays_silent():
    assert not mix_at_snr(np.zeros(500, np.float32), np.ones(500, np.float32), 10).any()


def test_the_same_key_gives_the_same_draws_and_another_gives_others():
    draws = [keyed_generator(*key).random() for key in ((0, "a"), (0, "a"), (1, "a"), (0, "b"), (0, "a", 1))]
    assert draws[0] == draws[1] and len(set(draws)) == 4


@pytest.mark.parametrize("kbits", [8, 16, 32, 64])
def test_mp3_has_the_bit_rate_asked_for(kbits, monkeypatch):
    assert coded_kbits(lambda x: degradation.through_mp3(x, kbits), monkeypatch) == pytest.approx(kbits, rel=0.03)


@pytest.mark.parametrize("kbits", [6, 12, 24])
def test_opus_has_about_the_bit_rate_asked_for(kbits, monkeypatch):
    """Ogg pages come on top, and Opus varies its rate with the signal: a glide costs more than speech."""
    coded = coded_kbits(lambda x: degradation.through_opus(x, kbits), monkeypatch)
    assert 0.8 * kbits < coded < 1.2 * kbits + 1.5


def coded_kbits(code, monkeypatch) -> float:
    seconds = 20
    sizes = []
    write = soundfile.write

    def measured_write(file: io.BytesIO, *args, **kwargs):
        write(file, *args, **kwargs)
        sizes.append(file.getbuffer().nbytes)

    monkeypatch.setattr(soundfile, "write", measured_write)
    code(speech_like(seconds * 16_000))
    return sizes[0] * 8 / seconds / 1000


CHANNELS = {
    **{f"mp3 {k}": lambda x, k=k: degradation.through_mp3(x, k) for k in (8, 16, 32, 128)},
    **{f"opus {k}": lambda x, k=k: degradation.through_opus(x, k) for k in (6, 24)},
    "telephone": degradation.through_telephone,
    "band": lambda x: degradation.band_limit(x, 100, 2000),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_a_channel_keeps_length_timing_and_rough_level(name):
    heard = CHANNELS[name](SPEECH)
    assert heard.shape == SPEECH.shape and heard.dtype == np.float32
    assert abs(lag(heard, SPEECH)) <= 2
    assert 0.5 < rms(heard) / rms(SPEECH) < 1.2


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("num_samples", [1, 10, 401, 5000])
def test_a_channel_takes_short_and_silent_recordings(name, num_samples):
    for waveform in (SPEECH[8000 : 8000 + num_samples], np.zeros(num_samples, np.float32)):
        heard = CHANNELS[name](waveform)
        assert heard.shape == (num_samples,) and np.isfinite(heard).all()
    assert not heard.any()


@pytest.mark.parametrize("name", CHANNELS)
def test_a_channel_does_not_clip_loud_recordings(name):
    """A codec sees full scale at most, so 8 times louder in is 8 times louder out."""
    quiet, loud = CHANNELS[name](SPEECH), CHANNELS[name](8 * SPEECH)
    np.testing.assert_allclose(loud / 8, quiet, atol=1e-6)


def test_fewer_bits_per_second_leave_less_of_the_speech():
    for code, rates in ((degradation.through_mp3, (64, 16, 8)), (degradation.through_telephone, (8, 5, 3))):
        errors = [rms(code(SPEECH, rate) - SPEECH) for rate in rates]
        assert errors == sorted(errors)


def test_a_telephone_lets_only_its_band_through():
    spectrum = np.abs(np.fft.rfft(degradation.through_telephone(SPEECH))) ** 2
    frequency = np.fft.rfftfreq(len(SPEECH), 1 / 16_000)
    assert spectrum[frequency > 4200].sum() < 1e-3 * spectrum.sum()
    assert spectrum[frequency < 150].sum() < 1e-2 * spectrum.sum()


def test_a_room_neither_delays_nor_amplifies():
    response = np.zeros(4000, np.float32)
    response[700], response[1500] = 1.0, 0.4
    heard = degradation.reverberate(SPEECH, response)
    assert heard.shape == SPEECH.shape
    assert lag(heard, SPEECH) == 0
    assert rms(heard) == pytest.approx(rms(SPEECH), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.2, 1.0])
def test_lost_packets_are_silent_and_as_many_as_asked_for(share):
    heard = degradation.lose_packets(SPEECH, share, np.random.default_rng(3))
    packets = heard.reshape(-1, degradation.PACKET)
    lost = ~packets.any(1)
    assert lost.mean() == pytest.approx(share)
    assert np.array_equal(packets[~lost], SPEECH.reshape(packets.shape)[~lost])


def test_packets_lost_at_a_low_share_are_lost_at_a_high_one():
    few, many = (degradation.lose_packets(SPEECH, s, np.random.default_rng(3)) for s in (0.05, 0.2))
    assert not many[few == 0].any()


@pytest.mark.parametrize("percent", [0, 20, 60])
def test_clipping_flattens_as_many_samples_as_asked_for(percent):
    heard = degradation.clip_percentile(SPEECH, percent)
    assert np.mean(heard != SPEECH) == pytest.approx(percent / 100, abs=0.001)


def test_a_gain_transition_stays_between_its_ends():
    for seed in range(20):
        heard = degradation.gain_transition(SPEECH, -30, -10, np.random.default_rng(seed))
        gain_db = 20 * np.log10(np.abs(heard[SPEECH != 0] / SPEECH[SPEECH != 0]))
        assert gain_db.min() >= -30.001 and gain_db.max() <= -9.999
        assert np.all(np.diff(gain_db) > -1e-3) or np.all(np.diff(gain_db) < 1e-3)
