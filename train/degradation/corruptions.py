"""What test recordings are put through: RobuSER's corruptions at its three levels, and some of ours.

Each kind at level 1 (mild), 2 and 3 (hard):

    noise recordings, each source apart   SNR 20, 10, 0 dB
    gaussian                              SNR 30, 20, 10 dB
    room                                  RT60 0.1–0.5, 0.5–1.0, 1.0–1.5 s
    mp3                                   32, 16, 8 kbit/s
    clipping                              at most 20, 40, 60 % of the samples
    gain_transition                       −20…0, −30…−10, −40…−20 dB
    ours: telephone                       300–3400 Hz, μ-law with 8, 5, 3 bits
          opus                            24, 12, 6 kbit/s
          packet_loss                     5, 10, 20 % of packets of 20 ms, silent
          room_and_noise                  room and then noise (Gaussian without recordings) of the same level

RobuSER makes its kinds with audiomentations; where ours differ from those, `effects.py` says so. One difference is
common to all: RobuSER brings every corrupted recording to a peak of 1 afterwards. Here levels stay as they are, since a
model may hear them, and clean recordings are not brought there either.

Noise and rooms are those of the testing part of their folders, which augmentation never sees. A recording
meets the same noise clip from the same start at every level, and loses the same packets and more.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from . import effects
from .rooms import can_simulate, measured_rooms, simulated_room, synthetic_room
from .sources import SoundError, content_of, noise_files, noise_sources, recording

LEVELS = (1, 2, 3)
NOISE_SNR_DB = (20, 10, 0)
GAUSSIAN_SNR_DB = (30, 20, 10)
RT60_SECONDS = ((0.1, 0.5), (0.5, 1.0), (1.0, 1.5))
ROOMS_PER_LEVEL = 4  # measured ones first, made ones for the rest

Degrade = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption at one level: `corruption(waveform, key)` gives the corrupted waveform.

    `setting` says what the level means (JSON-able). Waveforms are `(n,)`, float32, 16 kHz, in and out, of one
    length. The result depends on `seed`, `key`, the kind and the level alone: key by something that is the
    same everywhere, such as the file's name within its corpus. ValueError for an empty waveform.
    """

    name: str
    level: int
    setting: dict = field(hash=False)
    degrade: Degrade = field(repr=False, compare=False)
    seed: int = 0

    def __call__(self, waveform: np.ndarray, key: str | int) -> np.ndarray:
        waveform = np.asarray(waveform, dtype=np.float32)
        if waveform.ndim != 1 or not len(waveform):
            raise ValueError(f"{self.name} needs one channel of speech, got shape {waveform.shape} ({key}).")
        return self.degrade(waveform, effects.keyed_generator(self.seed, self.name, key))

    def describe(self) -> dict:
        """Name, level, seed and setting, for reports."""
        return {"name": self.name, "level": self.level, "seed": self.seed, **self.setting}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with anything that changes the result, for cache keys."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]


def corruptions(
    noise_dir: str | Path | Mapping[str, str | Path] | None = None,
    rir_dir: str | Path | None = None,
    names: tuple[str, ...] | None = None,
    levels: tuple[int, ...] = LEVELS,
    seed: int = 0,
) -> list[Corruption]:
    """All corruptions at all levels, or those with one of `names` at some `levels`.

    `noise_dir`: a folder, whose sources (metadata.csv, column `source`) each make a corruption
    `noise_<source>`; or a mapping from a source's name to its folder. Without it there is no recorded noise.
    `rir_dir`: measured room impulse responses. Rooms that lack are simulated by pyroomacoustics, or, where
    that is not installed, are synthetic decays: `describe()` says which.

    ValueError for an unknown name or level, and for a folder with no recordings for testing.
    """
    noises = _noises(noise_dir)
    every_noise = [file for files in noises.values() for file in files]
    made = {f"noise_{name}": partial(_noise, files) for name, files in noises.items()}
    made |= {"gaussian": None, "room": partial(_room, rir_dir)} | WITHOUT_RECORDINGS
    made["room_and_noise"] = partial(_room_and_noise, rir_dir, every_noise)
    unknown = [name for name in names or () if name not in made]
    if unknown or set(levels) - set(LEVELS):
        raise ValueError(
            f"No corruption {', '.join(unknown) or 'level'} {set(levels) - set(LEVELS) or ''}; "
            f"there are {', '.join(made)}, at levels 1, 2, 3. Recorded noise needs noise_dir."
        )
    return [
        Corruption(name, level, *make(level=level), seed=seed)
        for name, make in made.items()
        if names is None or name in names
        for level in levels
    ]


# --- each kind: level → (setting, what to do); named functions, so that a Corruption can be pickled for workers ------


def _by_amount(setting: str, amounts: Sequence, degrade: Callable, level: int, **more) -> tuple[dict, Degrade]:
    """Of a kind whose levels differ in one amount."""
    amount = amounts[level - 1]
    shown = list(amount) if isinstance(amount, tuple) else amount
    return {setting: shown, **more}, partial(degrade, amount)


def _gaussian(snr_db, speech, rng):
    return effects.add_gaussian(speech, snr_db, rng)


def _mp3(kbits, speech, rng):
    return effects.through_mp3(speech, kbits)


def _clipping(percent, speech, rng):
    return effects.clip_percentile(speech, rng.uniform(0, percent))


def _gain_transition(decibels, speech, rng):
    return effects.gain_transition(speech, *decibels, rng)


def _telephone(bits, speech, rng):
    return effects.through_telephone(speech, bits)


def _opus(kbits, speech, rng):
    return effects.through_opus(speech, kbits)


def _packet_loss(share, speech, rng):
    return effects.lose_packets(speech, share, rng)


WITHOUT_RECORDINGS = {
    "gaussian": partial(_by_amount, "snr_db", GAUSSIAN_SNR_DB, _gaussian),
    "mp3": partial(_by_amount, "kbits", (32, 16, 8), _mp3),
    "clipping": partial(_by_amount, "percent_at_most", (20, 40, 60), _clipping),
    "gain_transition": partial(
        _by_amount, "gain_db", ((-20, 0), (-30, -10), (-40, -20)), _gain_transition, transition=effects.TRANSITION
    ),
    "telephone": partial(_by_amount, "bits", (8, 5, 3), _telephone, band_hz=[300, 3400]),
    "opus": partial(_by_amount, "kbits", (24, 12, 6), _opus),
    "packet_loss": partial(_by_amount, "share", (0.05, 0.10, 0.20), _packet_loss),
}


def _noise(files: list[Path], level: int) -> tuple[dict, Degrade]:
    snr_db = NOISE_SNR_DB[level - 1]
    setting = {"snr_db": snr_db, "recordings": len(files), "recordings_hash": _hash(map(content_of, files))}
    return setting, partial(_add_recording, files, snr_db)


def _add_recording(files, snr_db, speech, rng):
    file = files[rng.integers(len(files))]
    try:
        return effects.mix_at_snr(speech, recording(file), snr_db, rng)
    except ValueError as error:
        raise SoundError(f"{file}: {error}") from error


def _room(rir_dir, level: int) -> tuple[dict, Degrade]:
    rooms = _rooms(str(rir_dir) if rir_dir is not None else None, *RT60_SECONDS[level - 1])
    listed = {name: round(seconds, 2) for name, (_, seconds) in rooms.items()}
    setting = {
        "rt60_s": list(RT60_SECONDS[level - 1]),
        "rooms": listed,
        "rooms_hash": _hash(response.tobytes() for response, _ in rooms.values()),
    }
    return setting, partial(_put_in_room, [response for response, _ in rooms.values()])


def _put_in_room(rooms, speech, rng):
    return effects.reverberate(speech, rooms[int(rng.random() * len(rooms))])


def _room_and_noise(rir_dir, files: list[Path], level: int) -> tuple[dict, Degrade]:
    room, put_in_room = _room(rir_dir, level)
    noise, add_noise = _noise(files, level) if files else WITHOUT_RECORDINGS["gaussian"](level=level)
    return room | noise, partial(_one_after_another, [put_in_room, add_noise])


def _one_after_another(steps, speech, rng):
    for step in steps:
        speech = step(speech, rng)
    return speech


# --- recordings ---------------------------------------------------------------------------------------


def _noises(noise_dir) -> dict[str, list[Path]]:
    """Recordings for testing by the name of their source."""
    if noise_dir is None:
        return {}
    if isinstance(noise_dir, Mapping):
        return {_plain(name): noise_files(folder, "testing") for name, folder in noise_dir.items()}
    sources = noise_sources(noise_dir)
    if not sources:
        return {_plain(Path(noise_dir).resolve().name): noise_files(noise_dir, "testing")}
    return {_plain(name): noise_files(noise_dir, "testing", source=name) for name in sources}


@lru_cache(maxsize=16)
def _rooms(rir_dir: str | None, low: float, high: float) -> dict[str, tuple[np.ndarray, float]]:
    """Measured rooms for testing with RT60 in `[low, high)`, and made ones where they are fewer than four."""
    rooms = measured_rooms(rir_dir, "testing", low, high) if rir_dir is not None else {}
    for index in range(ROOMS_PER_LEVEL - len(rooms)):
        rng = effects.keyed_generator(0, "room", low, index)  # rooms stay the same whatever the seed of the corruption
        if can_simulate():
            rooms[f"simulated_{index}"] = simulated_room(low, high, rng)
        else:
            seconds = rng.uniform(low, high)
            rooms[f"synthetic_{index}"] = synthetic_room(seconds, rng), seconds
    return rooms


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _hash(contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:12]
