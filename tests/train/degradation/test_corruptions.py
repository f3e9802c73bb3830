import json
import pickle

import numpy as np
import pytest
import soundfile

from train.degradation import corruptions as module
from train.degradation.corruptions import corruptions
from train.degradation.effects import rms
from train.degradation.sources import noise_files

from .test_effects import SPEECH, snr_db


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for index in range(6):
        soundfile.write(folder / f"{index}.wav", rng.standard_normal(9_600) / 6, 16_000)
    return folder


@pytest.fixture(scope="module")
def everything(noise):
    return corruptions({"Street": noise})


def at(everything, name):
    return [corruption for corruption in everything if corruption.name == name]


def test_every_kind_of_the_table_has_three_levels(everything):
    names = ["noise_street", "gaussian", "room", "mp3", "clipping", "gain_transition"]
    names += ["telephone", "opus", "packet_loss", "room_and_noise"]
    assert [(c.name, c.level) for c in everything] == [(name, level) for name in names for level in (1, 2, 3)]


def test_corruptions_keep_length_and_stay_finite(everything):
    for corruption in everything:
        for waveform in (SPEECH, SPEECH[:1], SPEECH[:399], np.zeros(800, np.float32)):
            heard = corruption(waveform, "a")
            assert heard.shape == waveform.shape and heard.dtype == np.float32, corruption
            assert np.isfinite(heard).all(), corruption


def test_corruptions_depend_on_seed_and_key_alone(everything, noise):
    later = pickle.loads(pickle.dumps(corruptions({"Street": noise})[::-1]))[::-1]
    other = corruptions({"Street": noise}, seed=1)
    for first, second, third in zip(everything, later, other, strict=True):
        assert np.array_equal(first(SPEECH, "a"), second(SPEECH, "a")), first
        assert first == second and first.fingerprint == second.fingerprint
        if first.name not in ("mp3", "opus", "telephone"):
            copies = [first(SPEECH, "a"), first(SPEECH, "c"), third(SPEECH, "a"), first(SPEECH, "d")]
            assert len({copy.tobytes() for copy in copies}) > 1, first
        assert first.fingerprint != third.fingerprint


def test_the_waveform_that_is_passed_in_is_left_alone(everything):
    before = SPEECH.copy()
    for corruption in everything:
        corruption(SPEECH, "a")
    assert np.array_equal(SPEECH, before)


@pytest.mark.parametrize(
    ("name", "levels"), [("noise_street", module.NOISE_SNR_DB), ("gaussian", module.GAUSSIAN_SNR_DB)]
)
def test_noise_reaches_the_snr_of_its_level(everything, name, levels):
    for corruption, wanted_db in zip(at(everything, name), levels, strict=True):
        assert snr_db(corruption(SPEECH, "a"), SPEECH) == pytest.approx(wanted_db, abs=0.01)


def test_levels_add_the_same_noise_at_different_strengths(everything):
    mild, _, hard = (corruption(SPEECH, "a") - SPEECH for corruption in at(everything, "noise_street"))
    assert np.corrcoef(mild, hard)[0, 1] > 0.9999


@pytest.mark.parametrize("name", ["noise_street", "gaussian", "mp3", "clipping", "packet_loss", "opus"])
def test_a_higher_level_is_further_from_the_clean_speech(everything, name):
    distances = [
        np.mean([rms(corruption(SPEECH, key) - SPEECH) for key in range(10)]) for corruption in at(everything, name)
    ]
    assert distances == sorted(distances)


def test_rooms_have_the_reverberation_time_of_their_level(everything):
    for corruption, (low, high) in zip(at(everything, "room"), module.RT60_SECONDS, strict=True):
        times = corruption.describe()["rooms"].values()
        assert len(times) == module.ROOMS_PER_LEVEL
        assert all(low - 0.005 <= seconds <= high + 0.005 for seconds in times)


def test_rooms_without_pyroomacoustics_are_said_to_be_synthetic(monkeypatch):
    monkeypatch.setattr(module, "can_simulate", lambda: False)
    module._rooms.cache_clear()
    try:
        (corruption,) = corruptions(names=("room",), levels=(2,))
        assert all(name.startswith("synthetic") for name in corruption.setting["rooms"])
        assert np.isfinite(corruption(SPEECH, "a")).all()
    finally:
        module._rooms.cache_clear()


def test_only_noise_for_testing_is_heard(everything, noise, monkeypatch):
    heard = []
    monkeypatch.setattr(module, "recording", lambda path: heard.append(path) or np.ones(10, np.float32))
    for key in range(50):
        at(everything, "noise_street")[0](SPEECH, key)
    assert set(heard) == set(noise_files(noise, "testing"))
    assert not set(heard) & set(noise_files(noise, "training"))


def test_what_was_done_can_be_reported(everything):
    described = [corruption.describe() for corruption in everything]
    assert json.loads(json.dumps(described)) == described
    assert len({corruption.fingerprint for corruption in everything}) == len(everything)


def test_names_and_levels_can_be_chosen_and_unknown_ones_are_refused(noise):
    chosen = corruptions(noise, names=("gaussian", "mp3"), levels=(2, 3))
    assert [(c.name, c.level) for c in chosen] == [("gaussian", 2), ("gaussian", 3), ("mp3", 2), ("mp3", 3)]
    with pytest.raises(ValueError, match="hail"):
        corruptions(names=("hail",))
    with pytest.raises(ValueError, match="level"):
        corruptions(levels=(4,))


def test_a_silent_noise_recording_is_named(tmp_path):
    for name in "abcd":
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(1000), 16_000)
    (corruption,) = corruptions({"quiet": tmp_path}, names=("noise_quiet",), levels=(1,))
    with pytest.raises(ValueError, match=r"\.wav: .*silent"):
        corruption(SPEECH, "a")


def test_real_noise_makes_a_corruption_for_each_source(shared_data):
    made = corruptions(shared_data / "noise", shared_data / "rir", levels=(3,))
    assert {c.name for c in made} >= {"noise_esc_10", "noise_speech_commands"}
    room = next(c for c in made if c.name == "room")
    assert any(not name.startswith("simulated") for name in room.setting["rooms"])
