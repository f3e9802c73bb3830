import numpy as np
import pytest
import soundfile

from train.degradation import rooms
from train.degradation.rooms import reverberation_time, synthetic_room


def decay(seconds: float, length: float, floor_db: float = -200, rate: int = 16_000) -> np.ndarray:
    """Gaussian noise that loses 60 dB in `seconds`, on a steady noise floor."""
    rng = np.random.default_rng(0)
    time = np.arange(int(length * rate)) / rate
    response = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    response[0] = 5.0
    return response + 10 ** (floor_db / 20) * rng.standard_normal(len(time))


@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.8, 1.3, 3.0])
def test_the_reverberation_time_of_a_known_decay_is_found(seconds):
    assert reverberation_time(decay(seconds, 1.5 * seconds)) == pytest.approx(seconds, rel=0.05)


def test_a_noise_floor_does_not_read_as_reverberation():
    assert reverberation_time(decay(0.5, 3.0, floor_db=-45)) == pytest.approx(0.5, rel=0.1)


def test_a_floor_too_high_to_measure_above_gives_no_time():
    assert np.isnan(reverberation_time(decay(0.5, 3.0, floor_db=-15)))
    assert np.isnan(reverberation_time(np.random.default_rng(0).standard_normal(16_000)))
    assert np.isnan(reverberation_time(np.ones(20)))


def test_silence_before_the_direct_sound_does_not_matter():
    response = decay(0.4, 1.0)
    later = np.concatenate([np.zeros(3000), response])
    assert reverberation_time(later) == pytest.approx(reverberation_time(response), rel=1e-6)


@pytest.mark.parametrize("seconds", [0.2, 0.7, 1.4])
def test_a_synthetic_room_has_the_reverberation_time_asked_for(seconds):
    for seed in range(5):
        response = synthetic_room(seconds, np.random.default_rng(seed))
        assert reverberation_time(response) == pytest.approx(seconds, rel=0.1)
        assert np.abs(response).argmax() == 0


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.5), (0.5, 1.0), (1.0, 1.5)])
def test_a_simulated_room_lies_in_its_bucket_and_is_the_same_each_time(low, high):
    pytest.importorskip("pyroomacoustics")
    response, seconds = rooms.simulated_room(low, high, np.random.default_rng(0))
    assert low <= seconds < high
    assert np.array_equal(response, rooms.simulated_room(low, high, np.random.default_rng(0))[0])


def test_measured_rooms_are_sorted_by_what_they_measure(tmp_path):
    for name, seconds in (("office", 0.3), ("hall", 0.8), ("church", 4.0)):
        soundfile.write(tmp_path / f"{name}.wav", decay(seconds, 2 * seconds) / 20, 16_000)
    assert set(rooms.measured_rooms(tmp_path, "all", 0.1, 0.5)) == {"office"}
    found = rooms.measured_rooms(tmp_path, "all", 0.5, 10)
    assert {name: round(seconds) for name, (_, seconds) in found.items()} == {"hall": 1, "church": 4}
    assert all(np.abs(response).argmax() <= rooms.ONSET for response, _ in found.values())
