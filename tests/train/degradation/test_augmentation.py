import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import train.degradation.augmentation
from train.degradation.augmentation import KINDS, Augmentation
from train.degradation.effects import rms

from .test_effects import SPEECH, snr_db, speech_like

ROOT = Path(__file__).parents[3]
VOICES = [speech_like(20_000, seed) for seed in range(5)]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Folders of six noises and of six rooms."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for what in ("noise", "rooms"):
        (folder / what).mkdir()
        for index in range(6):
            sound = rng.standard_normal(9_600)
            if what == "rooms":
                sound *= 10 ** (-3 * np.arange(9_600) / 16_000 / (0.2 + 0.05 * index))
            soundfile.write(folder / what / f"{index}.wav", sound / 6, 16_000)
    return folder


@pytest.fixture(scope="module")
def augmentation(recordings):
    return Augmentation(recordings / "noise", recordings / "rooms", VOICES)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_speech_and_keeps_it_whole(recordings, kind):
    augment = Augmentation(recordings / "noise", recordings / "rooms", VOICES, kinds=[kind])
    for key in range(8):
        copy = augment(SPEECH, key)
        assert copy.dtype == np.float32 and copy.ndim == 1
        assert kind == "speed" or copy.shape == SPEECH.shape
        assert np.isfinite(copy).all() and not np.array_equal(copy, SPEECH)


def test_speed_shifts_every_frequency_by_less_than_a_fifth():
    tone = np.sin(2 * np.pi * 1_000 * np.arange(32_000) / 16_000).astype(np.float32)
    lengths = []
    for key in range(12):
        copy = Augmentation(kinds=["speed"])(tone, key)
        loudest = np.abs(np.fft.rfft(copy)).argmax() / len(copy) * 16_000
        assert loudest * len(copy) == pytest.approx(1_000 * len(tone), rel=2e-3)
        lengths.append(len(copy) / len(tone))
    assert 0.84 <= min(lengths) < 0.95 and 1.05 < max(lengths) <= 1.19


def test_copies_depend_on_seed_and_key_alone(recordings, augmentation):
    keys = ["a.wav", "b.wav", 7, "a.wav#2"]
    forwards = {key: augmentation(SPEECH, key) for key in keys}
    random.seed(5)
    np.random.seed(5)
    again = pickle.loads(pickle.dumps(augmentation))
    for key in reversed(keys):
        assert np.array_equal(again(SPEECH, key), forwards[key])
    assert not np.array_equal(forwards["a.wav"], forwards["a.wav#2"])
    other = Augmentation(recordings / "noise", recordings / "rooms", VOICES, seed=1)
    assert not np.array_equal(other(SPEECH, "a.wav"), forwards["a.wav"])


def test_another_process_makes_the_same_copies():
    program = (
        "import hashlib; from tests.train.degradation.test_effects import SPEECH;"
        "from train.degradation.augmentation import Augmentation;"
        "a = Augmentation(); d = hashlib.sha256();"
        "[d.update(a(SPEECH, k).tobytes()) for k in range(10)]; print(d.hexdigest(), a.fingerprint)"
    )
    runs = {subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT) for _ in range(2)}
    assert len(runs) == 1


def test_the_global_generators_are_left_as_they_were(augmentation):
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    augmentation(SPEECH, "a")
    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize("kind", ["noise", "babble", "gaussian", "coloured"])
def test_additive_kinds_stay_in_their_snr_range(recordings, kind):
    augment = Augmentation(recordings / "noise", babble=VOICES, kinds=[kind], snr_db=(5, 10))
    reached = [snr_db(augment(SPEECH, key), SPEECH) for key in range(20)]
    assert 4.9 < min(reached) < 7 and 8 < max(reached) < 10.1


def test_copies_are_not_clipped(recordings):
    """Samples beyond 1 stay as they are: a copy is not flattened at its peak."""
    augment = Augmentation(recordings / "noise", babble=VOICES)
    loud = SPEECH / np.abs(SPEECH).max()
    copies = [augment(loud, key) for key in range(20)]
    assert max(np.abs(copy).max() for copy in copies) > 1
    assert all(np.sum(np.abs(copy) == np.abs(copy).max()) == 1 for copy in copies)


@pytest.mark.parametrize("num_samples", [1, 50, 400])
def test_short_and_silent_recordings_stay_finite(augmentation, num_samples):
    for waveform in (SPEECH[:num_samples], np.zeros(num_samples, np.float32)):
        for key in range(20):
            copy = augmentation(waveform, key)
            assert 0.8 * num_samples - 1 < len(copy) < 1.2 * num_samples + 1 and np.isfinite(copy).all()


def test_without_any_recordings_there_is_noise_all_the_same():
    augment = Augmentation()
    assert set(augment.kinds) == set(KINDS) - {"noise", "babble"}
    assert not any(np.array_equal(augment(SPEECH, key), SPEECH) for key in range(10))


def test_babble_can_come_from_files(recordings):
    augment = Augmentation(babble=sorted((recordings / "noise").iterdir()), kinds=["babble"])
    assert rms(augment(SPEECH, 0) - SPEECH) > 0


def test_a_kind_that_lacks_its_recordings_is_refused():
    for kind, message in (("noise", "noise_dir"), ("babble", "training speakers"), ("hum", "kinds must be")):
        with pytest.raises(ValueError, match=message):
            Augmentation(kinds=[kind])


def test_a_missing_folder_and_an_empty_recording_are_refused(augmentation, tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        Augmentation(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="one channel"):
        augmentation(np.zeros(0, np.float32), "empty.wav")


def test_the_fingerprint_tells_settings_and_recordings_apart(recordings, augmentation):
    same = Augmentation(recordings / "noise", recordings / "rooms", VOICES)
    others = [
        Augmentation(recordings / "noise", recordings / "rooms", VOICES[1:] + VOICES[:1]),
        Augmentation(recordings / "noise", recordings / "rooms", VOICES, seed=1),
        Augmentation(recordings / "noise", recordings / "rooms", VOICES, snr_db=(0, 10)),
        Augmentation(recordings / "noise", babble=VOICES),
    ]
    assert same.fingerprint == augmentation.fingerprint
    assert len({a.fingerprint for a in [same, *others]}) == 5
    assert json.loads(json.dumps(same.describe())) == same.describe()


def test_the_fingerprint_tells_other_ranges_apart(monkeypatch):
    before = Augmentation().fingerprint
    monkeypatch.setattr(train.degradation.augmentation, "TILT_DB", 3.0)
    assert Augmentation().fingerprint != before
