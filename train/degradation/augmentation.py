"""Noisy copies of training speech, through audiomentations; off in the paper-faithful recipe.

In the order in which sound travels: the speaker, the room, noise beside them, then the channel and its gain.
"""

import hashlib
import json
import random
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import audiomentations
import numpy as np
import soxr
from audiomentations.core.transforms_interface import BaseWaveformTransform

from modeling_edrl_mea.recordings import SAMPLING_RATE

from .effects import keyed_generator, mix_at_snr, reverberate, rms, through_mp3
from .rooms import measured_rooms, synthetic_room
from .sources import SoundError, content_of, noise_files, recording

ADDITIVE = {"noise": 3, "babble": 1, "gaussian": 1, "coloured": 1}  # how often each; recordings teach most
CHANNEL = ("band_limit", "codec")
KINDS = ("speed", "reverberation", *ADDITIVE, *CHANNEL, "tilt", "gain")
SPEED = 1.19  # at most so many times as fast, and as high, or as slow and low: another voice rather than another mood
TILT_DB = 6.0  # of the highs against the lows, as between microphones
MP3_KBITS = (8, 16, 24, 32, 64)
VOICES = (3, 8)  # fewer are competing speakers, more are a steady hum
LONGEST_RT60 = 2.5  # seconds; in the churches beyond, no emotion is left to learn

# One of each stage's kinds, with this probability.
STAGES = (
    (("speed",), 0.5),
    (("reverberation",), 0.3),
    (tuple(ADDITIVE), 0.85),
    (CHANNEL, 0.3),
    (("tilt",), 0.5),
    (("gain",), 0.5),
)

_global_generators = threading.Lock()


class Augmentation:
    """Makes noisy copies: `Augmentation(noise_dir="noise")(waveform, key)`.

    `noise_dir`, `rir_dir`: folders of noise recordings and of room impulse responses, of which only the
    training part is used (see sources.py); rooms are synthetic, half of them with `rir_dir`.
    `babble`: recordings of the *training* speakers (paths, or arrays `(n,)` at 16 kHz), mixed into babble.
    `kinds`: some of `KINDS`; default: all that the recordings given allow. A copy gets one additive kind, at an SNR
    drawn from `snr_db`, with probability 0.85; room and channel come with 0.3, speed, tilt and gain with 0.5. A single
    kind always comes. Speed changes the length.

    ValueError for an unknown kind, for one that lacks its recordings, and for an empty folder.
    """

    def __init__(
        self,
        noise_dir: str | Path | None = None,
        rir_dir: str | Path | None = None,
        babble: Iterable = (),
        kinds: Iterable[str] | None = None,
        snr_db: tuple[float, float] = (0, 20),
        seed: int = 0,
    ):
        self.noise = noise_files(noise_dir, "training") if noise_dir is not None else []
        self.rooms = measured_rooms(rir_dir, "training", 0.0, LONGEST_RT60) if rir_dir is not None else {}
        self.babble = list(babble)
        self.kinds = _checked_kinds(kinds, bool(self.noise), bool(self.babble))
        self.snr_db = (float(snr_db[0]), float(snr_db[1]))
        self.seed = int(seed)
        self._chain = self._chain_of_transforms()

    def __call__(self, waveform: np.ndarray, key: str | int) -> np.ndarray:
        """A noisy copy `(m,)` of a waveform `(n,)`, float32, 16 kHz; the same for the same seed and key.

        ValueError where the waveform is empty or not one channel.
        """
        waveform = np.array(waveform, dtype=np.float32)
        if waveform.ndim != 1 or not len(waveform):
            raise ValueError(f"Augmentation needs one channel of speech, got shape {waveform.shape} ({key}).")
        with _seeded(keyed_generator(self.seed, "augmentation", key)):
            augmented = self._chain(waveform, SAMPLING_RATE)
        return augmented.astype(np.float32)

    def describe(self) -> dict:
        """What was done, for reports; JSON-able, and the same on every machine with the same recordings."""
        return {
            "kinds": list(self.kinds),
            "snr_db": list(self.snr_db),
            "seed": self.seed,
            "noise_recordings": len(self.noise),
            "measured_rooms": sorted(self.rooms),
            "babble_recordings": len(self.babble),
            "audiomentations": version("audiomentations"),
        }

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the settings, the recordings used and what is drawn from, for cache
        keys."""
        drawn_from = ADDITIVE, STAGES, SPEED, TILT_DB, MP3_KBITS, VOICES, LONGEST_RT60
        digest = hashlib.sha256(json.dumps([self.describe(), drawn_from], sort_keys=True).encode())
        for path in self.noise:
            digest.update(content_of(path))
        for name in sorted(self.rooms):
            digest.update(self.rooms[name][0].tobytes())
        for voice in self.babble:
            digest.update(voice.tobytes() if isinstance(voice, np.ndarray) else content_of(voice))
        return digest.hexdigest()[:16]

    def _chain_of_transforms(self) -> audiomentations.Compose:
        low, high = self.snr_db
        snr = {"min_snr_db": low, "max_snr_db": high, "p": 1.0}
        made = {
            "speed": Speed,
            "reverberation": lambda: Reverberation([response for response, _ in self.rooms.values()]),
            "noise": lambda: RecordedNoise(self.noise, low, high),
            "babble": lambda: Babble(self.babble, low, high),
            "gaussian": lambda: audiomentations.AddGaussianSNR(**snr),
            "coloured": lambda: audiomentations.AddColorNoise(**snr, min_f_decay=-6.0, max_f_decay=3.0),
            "band_limit": lambda: audiomentations.LowPassFilter(1500.0, 7000.0, p=1.0),
            "codec": Mp3,
            "tilt": lambda: audiomentations.HighShelfFilter(500.0, 4000.0, -TILT_DB, TILT_DB, p=1.0),
            "gain": lambda: audiomentations.Gain(-20.0, 6.0, p=1.0),
        }
        stages = []
        for kinds, probability in STAGES:
            present = [kind for kind in kinds if kind in self.kinds]
            if present:
                weights = [ADDITIVE.get(kind, 1) for kind in present]
                always = len(present) == len(self.kinds)
                chosen = [made[kind]() for kind in present]
                stages.append(audiomentations.OneOf(chosen, p=1.0 if always else probability, weights=weights))
        return audiomentations.Compose(stages)


class Speed(BaseWaveformTransform):
    """Plays speech faster or slower, which changes pitch and formants with it."""

    def __init__(self):
        super().__init__(p=1.0)

    def apply(self, samples, sample_rate):
        speed = SPEED ** random.uniform(-1, 1)
        changed = soxr.resample(samples, sample_rate * speed, sample_rate)
        return changed if len(changed) else samples


class RecordedNoise(BaseWaveformTransform):
    """Adds one of some noise recordings, from a random start, repeated where too short.

    audiomentations' AddBackgroundNoise starts a short recording always at its beginning.
    """

    def __init__(self, files: list[Path], min_snr_db: float, max_snr_db: float):
        super().__init__(p=1.0)
        self.files, self.min_snr_db, self.max_snr_db = files, min_snr_db, max_snr_db

    def apply(self, samples, sample_rate):
        file, snr_db = random.choice(self.files), random.uniform(self.min_snr_db, self.max_snr_db)
        try:
            return mix_at_snr(samples, recording(file), snr_db, _drawn_generator())
        except ValueError as error:
            raise SoundError(f"{file}: {error}") from error


class Babble(BaseWaveformTransform):
    """Adds 3 to 8 voices talking at once, each as loud as the next."""

    def __init__(self, voices: list, min_snr_db: float, max_snr_db: float):
        super().__init__(p=1.0)
        self.voices, self.min_snr_db, self.max_snr_db = voices, min_snr_db, max_snr_db

    def apply(self, samples, sample_rate):
        rng = _drawn_generator()
        babble = np.zeros(len(samples))
        for voice in rng.integers(len(self.voices), size=rng.integers(*VOICES, endpoint=True)):
            waveform = self.voices[voice]
            waveform = waveform if isinstance(waveform, np.ndarray) else recording(waveform)
            talking = np.take(waveform, rng.integers(len(waveform)) + np.arange(len(samples)), mode="wrap")
            babble += talking / max(rms(waveform), 1e-9)
        if rms(babble) == 0:
            return samples
        return mix_at_snr(samples, babble, rng.uniform(self.min_snr_db, self.max_snr_db))


class Reverberation(BaseWaveformTransform):
    """A measured room or, half the time (always, where none was measured), a synthetic one."""

    def __init__(self, responses: list[np.ndarray]):
        super().__init__(p=1.0)
        self.responses = responses

    def apply(self, samples, sample_rate):
        if self.responses and random.random() < 0.5:
            return reverberate(samples, random.choice(self.responses))
        return reverberate(samples, synthetic_room(random.uniform(0.1, 1.5), _drawn_generator()))


class Mp3(BaseWaveformTransform):
    """MP3 and back through soundfile: audiomentations' Mp3Compression needs one more compiled package."""

    def __init__(self):
        super().__init__(p=1.0)

    def apply(self, samples, sample_rate):
        return through_mp3(samples, random.choice(MP3_KBITS))


def _checked_kinds(kinds: Iterable[str] | None, has_noise: bool, has_babble: bool) -> tuple[str, ...]:
    missing = {kind for kind, given in (("noise", has_noise), ("babble", has_babble)) if not given}
    if kinds is None:
        return tuple(kind for kind in KINDS if kind not in missing)
    kinds = tuple(kinds)
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {kinds}.")
    for kind, what in (("noise", "noise_dir"), ("babble", "babble, recordings of the training speakers")):
        if kind in kinds and kind in missing:
            raise ValueError(f"Augmentation by {kind} needs {what}: give it, or leave {kind!r} out of kinds.")
    return tuple(kind for kind in KINDS if kind in kinds)


def _drawn_generator() -> np.random.Generator:
    return np.random.default_rng(random.getrandbits(64))


@contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    """The two global generators that audiomentations draws from, seeded for a moment, then as they were."""
    with _global_generators:
        states = random.getstate(), np.random.get_state()
        random.seed(int(rng.integers(2**63)))
        np.random.seed(rng.integers(2**32, size=4, dtype=np.uint32))
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
