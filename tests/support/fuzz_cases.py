"""Recordings and files of every kind that should not be, drawn from seeds: `recording_of(seed)` is always the same."""

import io

import numpy as np
import soundfile
import torch

LENGTHS = [0, 1, 2, 3, 8, 9, 399, 400, 401, 745, 1_000, 4_097, 16_000, 30_000]
LONG_LENGTHS = [1_000_000, 10_000_000]
DTYPES = ["f2", "f4", "f8", "g", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
WRONG_DTYPES = ["?", "c8", "O", "U8", "S8", "M8[s]"]
RATES = [16_000] * 8 + [8_000, 11_025, 24_414.0625, 44_100, 48_000, 1_000, np.float32(22_050)]
WRONG_RATES = [0, -16_000, 16, 999, 1e9, float("nan"), float("inf"), "16000", True, None]
FORMATS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
FORMATS += [("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_24"), ("W64", "PCM_16")]
SUFFIXES = [".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".w64", ".m4a"]


def samples(generator: np.random.Generator, n: int) -> np.ndarray:
    """(n,) float64 of one of many kinds, finite or not."""
    noise = generator.standard_normal(n)
    kinds = {
        "noise": lambda: 0.1 * noise,
        "silence": lambda: np.zeros(n),
        "constant": lambda: np.full(n, generator.choice([1.0, -1.0, 0.5, 1e-3])),
        "impulse": lambda: np.eye(1, max(n, 1), int(generator.integers(max(n, 1))))[0][:n],
        "square": lambda: np.sign(noise),
        "unscaled": lambda: 32_768 * noise,
        "huge": lambda: noise * generator.choice([1e10, 1e30, 1e37, 1e200, 1e307]),
        "largest": lambda: np.sign(noise) * np.finfo(np.float64).max,
        "tiny": lambda: noise * generator.choice([1e-20, 1e-38, 1e-45]),
        "denormal": lambda: np.full(n, generator.choice([5e-324, 1e-310, -1e-310])),
        "offset": lambda: 1e-6 * noise + generator.choice([0.9, 1e3]),
        "one bad": lambda: np.where(
            np.arange(n) == generator.integers(max(n, 1)), generator.choice([np.nan, np.inf, -np.inf]), noise
        ),
        "all bad": lambda: np.full(n, np.nan),
    }
    return kinds[generator.choice(list(kinds))]()


def shaped(generator: np.random.Generator, values: np.ndarray) -> np.ndarray:
    shapes = [(-1,)] * 10 + [(-1, 1), (1, -1), (-1, 2), (2, -1), (-1, 9), (1, 1, -1)]
    shape = shapes[generator.integers(len(shapes))]
    width = abs(int(np.prod(shape)))
    return values[: len(values) // width * width].reshape(shape)


def recording_of(seed: int, long: bool = False) -> tuple:
    """(recording, sampling rate) of any dtype, shape and kind; one in ten is of a type that is no audio."""
    generator = np.random.default_rng(seed)
    n = int(generator.choice(LONG_LENGTHS if long else LENGTHS))
    values = shaped(generator, samples(generator, n))
    dtype = generator.choice(WRONG_DTYPES if generator.random() < 0.1 and not long else DTYPES)
    with np.errstate(all="ignore"):
        if np.dtype(dtype).kind in "iu":
            limits = np.iinfo(dtype)
            values = np.nan_to_num(values).clip(-1, 1) * float(limits.max) * 0.99
            values = values.clip(float(limits.min), float(limits.max) * 0.99)
        recording = values.astype(np.int64 if dtype == "M8[s]" else np.float64).astype(dtype)
    form = generator.random()
    if form < 0.1 and recording.dtype.kind in "iuf" and recording.dtype.itemsize <= 8 and not long:
        recording = recording.tolist() if form < 0.05 else torch.from_numpy(recording.copy())
        if form >= 0.08 and recording.is_floating_point():
            recording = recording.to(torch.bfloat16)
    rates = WRONG_RATES if generator.random() < 0.08 else [16_000] if long else RATES
    return recording, rates[generator.integers(len(rates))]


def contents(generator: np.random.Generator) -> bytes:
    """A file: sound, cut short, changed, of another kind, or not audio at all."""
    n, rate = int(generator.choice([0, 1, 100, 2_000, 8_000])), int(generator.choice([8_000, 16_000, 48_000]))
    kind, subtype = FORMATS[generator.integers(len(FORMATS))]
    values = samples(generator, n) if subtype == "FLOAT" else 0.1 * generator.standard_normal(n)
    values = np.stack([values] * int(generator.choice([1, 1, 2])), axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format=kind, subtype=subtype)
    whole = bytearray(buffer.getvalue())
    change = generator.choice(["none", "cut", "bytes", "header", "inserted", "zeros", "random", "empty", "text"])
    if not whole:  # an MP3 of no samples
        return b""
    if change == "cut":
        return bytes(whole[: generator.integers(len(whole))])
    if change in ("bytes", "header"):
        reach = len(whole) if change == "bytes" else min(len(whole), 64)
        for place in generator.integers(reach, size=generator.integers(1, 20)):
            whole[place] = generator.integers(256)
    if change == "inserted":
        place = generator.integers(len(whole))
        whole[place:place] = generator.bytes(generator.integers(1, 50))
    if change == "zeros":
        place = generator.integers(len(whole))
        whole[place:] = bytes(len(whole) - place)
    return {"random": generator.bytes(3_000), "empty": b"", "text": b"no sound\n" * 50}.get(change, bytes(whole))
