"""Rooms to put speech in: measured impulse responses sorted by their reverberation time, or made ones.

Every impulse response here is `(m,)`, 16 kHz, float32, cut to start at most 5 ms before its direct sound.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np

from modeling_edrl_mea.recordings import SAMPLING_RATE

from .sources import Part, impulse_response_files, recording

ONSET = SAMPLING_RATE // 200  # 5 ms kept before the direct sound: all of a measured response's rise
LONGEST = 3 * SAMPLING_RATE  # of a tail that matters to speech; some churches ring for 15 s


def reverberation_time(impulse_response: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> float:
    """RT60 in seconds by Schroeder's backward integration (1965), from the decay between −5 and −25 dB (T20).

    The recording's noise floor, its last tenth, is subtracted, and the integral stops where the decay meets
    it: uncorrected it would read as reverberation. NaN where the floor leaves no decay of 25 dB to measure.
    """
    energy = np.square(impulse_response[int(np.abs(impulse_response).argmax()) :], dtype=np.float64)
    window = max(sampling_rate // 100, 1)  # 10 ms
    smooth = energy[: len(energy) // window * window].reshape(-1, window).mean(1)
    if len(smooth) < 5:
        return float("nan")
    floor = smooth[-max(len(smooth) // 10, 1) :].mean()
    below = np.flatnonzero(smooth < 2 * floor)
    end = (below[0] if len(below) else len(smooth)) * window
    remaining = np.cumsum((energy[:end] - floor)[::-1])[::-1]
    if end == 0 or remaining[0] <= 0:
        return float("nan")
    decay_db = 10 * np.log10(np.maximum(remaining / remaining[0], 1e-12))
    # The last 5 dB above the cut are bent downwards by it, so a decay that ends there says nothing.
    if 10 * np.log10(smooth.max() / max(floor, 1e-20)) < 30:
        return float("nan")
    used = slice(int(np.argmax(decay_db <= -5)), int(np.argmax(decay_db <= -25)))
    if used.stop - used.start < 2:
        return float("nan")
    slope = np.polyfit(np.arange(used.start, used.stop) / sampling_rate, decay_db[used], 1)[0]
    return float(-60 / slope)


def measured_rooms(folder: str | Path, part: Part, low: float, high: float) -> dict[str, tuple[np.ndarray, float]]:
    """Responses of one part of a folder with RT60 in `[low, high)` seconds: name → (response, RT60)."""
    rooms = {}
    for path in impulse_response_files(folder, part):
        response, seconds = _measured(path)
        if low <= seconds < high:
            rooms[path.stem] = response, seconds
    return rooms


@lru_cache(maxsize=512)
def _measured(path: Path) -> tuple[np.ndarray, float]:
    whole = recording(path)
    return _cut(whole), reverberation_time(whole)


def simulated_room(low: float, high: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A shoebox room with RT60 in `[low, high)` seconds, by pyroomacoustics' image sources: (response, RT60).

    RT60 is drawn, the walls' absorption follows from it by Sabine's formula, and the room is drawn again, up
    to 50 times, until what it really has is in the interval. Needs pyroomacoustics (ImportError without).
    """
    import pyroomacoustics

    for _ in range(50):
        target = rng.uniform(low, high)
        size = rng.uniform([3, 3, 2.4], [6, 5, 3.2]) * (0.7 + target)  # Sabine finds no walls for the others
        try:
            absorption, order = pyroomacoustics.inverse_sabine(target, size)
        except ValueError:
            continue
        room = pyroomacoustics.ShoeBox(
            size, fs=SAMPLING_RATE, materials=pyroomacoustics.Material(absorption), max_order=min(order, 40)
        )
        room.add_source(rng.uniform(0.2, 0.8, 3) * size)
        room.add_microphone(rng.uniform(0.2, 0.8, 3) * size)
        room.compute_rir()
        response = np.asarray(room.rir[0][0], dtype=np.float32)
        seconds = reverberation_time(response)
        if low <= seconds < high:
            return _cut(response), seconds
    raise ValueError(f"No room with a reverberation time of {low} to {high} s was found in 50 draws.")


def synthetic_room(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Noise that decays by 60 dB in `seconds` after a direct sound: Moorer's (1979) cheap model of a room."""
    length = int(min(seconds, 3.0) * SAMPLING_RATE)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / (seconds * SAMPLING_RATE))
    tail[: SAMPLING_RATE // 500] = 0  # 2 ms: the first wall is further off
    ratio_db = rng.uniform(-3, 9)  # direct to reverberant energy: from across the room to close by
    response = tail * 10 ** (-ratio_db / 20) / max(np.sqrt(np.sum(tail**2)), 1e-12)
    response[0] = 1.0
    return response.astype(np.float32)


def can_simulate() -> bool:
    """Whether pyroomacoustics, which is optional, is installed."""
    return importlib.util.find_spec("pyroomacoustics") is not None


def _cut(response: np.ndarray) -> np.ndarray:
    start = max(int(np.abs(response).argmax()) - ONSET, 0)
    return np.array(response[start : start + LONGEST], dtype=np.float32)
