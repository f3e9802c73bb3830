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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from .effects import (
    TRANSITION,
    add_gaussian,
    clip_percentile,
    gain_transition,
    keyed_generator,
    lose_packets,
    mix_at_snr,
    reverberate,
    through_mp3,
    through_opus,
    through_telephone,
)
from .rooms import can_simulate, measured_rooms, simulated_room, synthetic_room
from .sources import SoundError, content_of, noise_files, noise_sources, recording

LEVELS = (1, 2, 3)
NOISE_SNR_DB = (20, 10, 0)
GAUSSIAN_SNR_DB = (30, 20, 10)
RT60_SECONDS = ((0.1, 0.5), (0.5, 1.0), (1.0, 1.5))
MP3_KBITS = (32, 16, 8)
CLIPPED_PERCENT = (20, 40, 60)
GAIN_DB = ((-20, 0), (-30, -10), (-40, -20))
TELEPHONE_BITS = (8, 5, 3)
OPUS_KBITS = (24, 12, 6)
LOST_PACKETS = (0.05, 0.10, 0.20)
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
        return self.degrade(waveform, keyed_generator(self.seed, self.name, key))

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
    made = {}
    for name, files in noises.items():
        made[f"noise_{name}"] = partial(_noise, files)
    made |= {
        "gaussian": _gaussian,
        "room": partial(_room, rir_dir),
        "mp3": _mp3,
        "clipping": _clipping,
        "gain_transition": _gain_transition,
        "telephone": _telephone,
        "opus": _opus,
        "packet_loss": _packet_loss,
        "room_and_noise": partial(_room_and_noise, rir_dir, [file for files in noises.values() for file in files]),
    }
    unknown = [name for name in names or () if name not in made]
    if unknown or set(levels) - set(LEVELS):
        raise ValueError(
            f"No corruption {', '.join(unknown) or 'level'} {set(levels) - set(LEVELS) or ''}; "
            f"there are {', '.join(made)}, at levels 1, 2, 3. Recorded noise needs noise_dir."
        )
    return [
        Corruption(name, level, *make(level), seed=seed)
        for name, make in made.items()
        if names is None or name in names
        for level in levels
    ]


# --- one function per kind: level → (setting, what to do) ----------------------------------------------


def _noise(files: list[Path], level: int) -> tuple[dict, Degrade]:
    snr_db = NOISE_SNR_DB[level - 1]
    setting = {"snr_db": snr_db, "recordings": len(files), "recordings_hash": _recordings_hash(files)}
    return setting, partial(_add_recording, files=files, snr_db=snr_db)


def _gaussian(level: int) -> tuple[dict, Degrade]:
    snr_db = GAUSSIAN_SNR_DB[level - 1]
    return {"snr_db": snr_db}, partial(_add_gaussian, snr_db=snr_db)


def _room(rir_dir, level: int) -> tuple[dict, Degrade]:
    rooms = _rooms(str(rir_dir) if rir_dir is not None else None, *RT60_SECONDS[level - 1])
    listed = {name: round(seconds, 2) for name, (_, seconds) in rooms.items()}
    setting = {"rt60_s": list(RT60_SECONDS[level - 1]), "rooms": listed, "rooms_hash": _rooms_hash(rooms)}
    return setting, partial(_put_in_room, rooms=[response for response, _ in rooms.values()])


def _mp3(level: int) -> tuple[dict, Degrade]:
    kbits = MP3_KBITS[level - 1]
    return {"kbits": kbits}, partial(_without_chance, through_mp3, kbits)


def _clipping(level: int) -> tuple[dict, Degrade]:
    percent = CLIPPED_PERCENT[level - 1]
    return {"percent_at_most": percent}, partial(_clip, percent=percent)


def _gain_transition(level: int) -> tuple[dict, Degrade]:
    low, high = GAIN_DB[level - 1]
    return {"gain_db": [low, high], "transition": TRANSITION}, partial(_move_gain, low_db=low, high_db=high)


def _telephone(level: int) -> tuple[dict, Degrade]:
    bits = TELEPHONE_BITS[level - 1]
    return {"band_hz": [300, 3400], "bits": bits}, partial(_without_chance, through_telephone, bits)


def _opus(level: int) -> tuple[dict, Degrade]:
    kbits = OPUS_KBITS[level - 1]
    return {"kbits": kbits}, partial(_without_chance, through_opus, kbits)


def _packet_loss(level: int) -> tuple[dict, Degrade]:
    share = LOST_PACKETS[level - 1]
    return {"share": share}, partial(_lose, share=share)


def _room_and_noise(rir_dir, files: list[Path], level: int) -> tuple[dict, Degrade]:
    room, put_in_room = _room(rir_dir, level)
    noise, add_noise = _noise(files, level) if files else _gaussian(level)
    return room | noise, partial(_one_after_another, steps=[put_in_room, add_noise])


# --- what they do; named functions, so that a Corruption can be pickled for worker processes -------------


def _add_recording(speech, rng, files, snr_db):
    file = files[rng.integers(len(files))]
    try:
        return mix_at_snr(speech, recording(file), snr_db, rng)
    except ValueError as error:
        raise SoundError(f"{file}: {error}") from error


def _add_gaussian(speech, rng, snr_db):
    return add_gaussian(speech, snr_db, rng)


def _put_in_room(speech, rng, rooms):
    return reverberate(speech, rooms[int(rng.random() * len(rooms))])


def _clip(speech, rng, percent):
    return clip_percentile(speech, rng.uniform(0, percent))


def _move_gain(speech, rng, low_db, high_db):
    return gain_transition(speech, low_db, high_db, rng)


def _lose(speech, rng, share):
    return lose_packets(speech, share, rng)


def _without_chance(degrade, amount, speech, rng):
    return degrade(speech, amount)


def _one_after_another(speech, rng, steps):
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
        rng = keyed_generator(0, "room", low, index)  # rooms stay the same whatever the seed of the corruption
        if can_simulate():
            rooms[f"simulated_{index}"] = simulated_room(low, high, rng)
        else:
            seconds = rng.uniform(low, high)
            rooms[f"synthetic_{index}"] = synthetic_room(seconds, rng), seconds
    return rooms


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _rooms_hash(rooms: dict[str, tuple[np.ndarray, float]]) -> str:
    digest = hashlib.sha256()
    for response, _ in rooms.values():
        digest.update(response.tobytes())
    return digest.hexdigest()[:12]


def _recordings_hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(content_of(file))
    return digest.hexdigest()[:12]
