"""What the demo asks of a model: what it hears, what decided, and the same with noise mixed in."""

import copy
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import soundfile

LIMIT = 10  # minutes of a recording that are listened to
SILENT = 2.0**-15  # deviation that is the rounding of 16-bit samples: -90 dB of full scale
NOISES = ("pink", "white", "like this speech")


def read(path: str) -> tuple[np.ndarray, int]:
    """A file's samples as float32 (n,) at full scale ±1, and their rate.

    Raises ValueError for a file that does not decode, is empty, or is longer than the limit.
    """
    try:
        stated = soundfile.info(path).duration
        if stated <= 60 * LIMIT:
            samples, rate = soundfile.read(path, dtype="float32")
            return as_mono((rate, samples))
    except soundfile.LibsndfileError:
        waveform, rate = as_mono(_converted(path))
        stated = len(waveform) / rate
        if stated <= 60 * LIMIT:
            return waveform, rate
    raise ValueError(f"The recording is {stated / 60:.0f} minutes long. Give at most {LIMIT}: cut it, or take a part.")


def _converted(path: str) -> tuple[int, np.ndarray]:
    """By FFmpeg, where the machine has it: m4a, webm and the like."""
    from gradio.processing_utils import audio_from_file

    try:
        return audio_from_file(path)
    except Exception as error:  # pydub, which decodes there, has no one error of its own
        raise ValueError(
            "This file does not decode: it is damaged, or no recording. Try another, as wav, flac, ogg or mp3."
        ) from error


def as_mono(recording: tuple[int, np.ndarray]) -> tuple[np.ndarray, int]:
    """Gradio's (rate, samples), integers or floats, (n,) or (n, channels), as float32 (n,) at full scale ±1, and rate.

    Raises ValueError for a recording without samples or sound.
    """
    rate, samples = recording
    samples = np.asarray(samples)
    if not samples.size:
        raise ValueError("The recording is empty.")
    if samples.dtype.kind in "iu":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = (samples - half * (samples.dtype.kind == "u")) / half
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    if np.std(samples, dtype=np.float64) < SILENT:
        raise ValueError("There is no sound in the recording: check the microphone.")
    return samples.astype(np.float32), int(rate)


def hear(model, waveform: np.ndarray, rate: int):
    """The model's `Prediction`, without scores and ratings where nobody speaks."""
    heard = model.predict({"array": waveform, "sampling_rate": rate})
    return heard if heard.speech_share else replace(heard, scores={}, attributes=None)


def deciding_blocks(model, waveform: np.ndarray, rate: int) -> tuple[str, dict[str, float]]:
    """The winning emotion, and what each block of the embedding gives to its logit."""
    explanation = model.explain({"array": waveform, "sampling_rate": rate})
    return explanation["label"], explanation["logit_contributions"]


def adapted(model, files: list[str]):
    """A model for one visitor, adapted to files of theirs; the backbone stays everybody's, and so does `model`."""
    return copy.deepcopy(model, {id(model.backbone): model.backbone}).adapt(files)


def with_noise(waveform: np.ndarray, snr_db: float, kind: str, seed: int = 0) -> np.ndarray:
    """`waveform` (n,) with noise at `snr_db` dB, both powers taken over the whole recording; the same every time.

    "like this speech" has the recording's own spectrum, which hides it best.
    """
    noise = _noise(waveform, kind, np.random.default_rng(seed))
    power, noise_power = np.mean(np.square(waveform, dtype=np.float64)), np.mean(np.square(noise))
    if not power or not noise_power:
        return waveform
    mixed = waveform + noise * np.sqrt(power / noise_power / 10 ** (snr_db / 10))
    return (mixed / max(1.0, np.abs(mixed).max())).astype(np.float32)  # not clipped, which would be another corruption


def _noise(waveform: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    white = rng.standard_normal(len(waveform))
    if kind == "white":
        return white
    if kind not in NOISES:
        raise ValueError(f"No noise {kind!r}; there are {', '.join(NOISES)}.")
    spectrum = np.fft.rfft(white)
    if kind == "pink":
        shape = 1 / np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    else:
        shape = np.abs(np.fft.rfft(waveform))
    return np.fft.irfft(spectrum * shape, n=len(waveform))


def verdict(before, after, scales: Mapping[str, tuple[float, float]]) -> str:
    """What is heard without and with noise, both as [`hear`] tells, in words; ratings as a table, on their scales."""
    if not before.speech_share:
        return "**Nobody speaks** in this recording, so there is nothing to tell."
    said = _survival(before.scores, after.scores)
    if not after.speech_share:
        said = "**With noise no speech is heard**, so there is nothing to tell."
    return "\n\n".join(part for part in (said, _ratings(before.attributes, after.attributes, scales)) if part)


def _survival(before: dict[str, float], after: dict[str, float]) -> str:
    """Whether the prediction of an emotion survives; nothing of a model that names none."""
    if not before or not after:
        return ""
    first, second = max(before, key=before.get), max(after, key=after.get)
    share, noisy_share = before[first], after[second]
    first, second = plain(first), plain(second)
    if first == second:
        return f"**The prediction holds:** {first}, {share:.0%} without and {noisy_share:.0%} with noise."
    return f"**The prediction changes:** {first} ({share:.0%}) becomes {second} ({noisy_share:.0%})."


def _ratings(before: dict[str, float] | None, after: dict[str, float] | None, scales) -> str:
    lines = ["| | scale | as recorded | with noise |", "| --- | --- | --- | --- |"]
    for name, rating in (before or {}).items():
        low, high = scales[name]
        noisy = f"{after[name]:.1f}" if after else "–"
        lines.append(f"| {plain(name)} | {low:g} to {high:g} | {rating:.1f} | {noisy} |")
    return "\n".join(lines) if before else ""


def plain(label: str) -> str:
    """A label as text in Markdown, whatever it holds."""
    return re.sub(r"([^\w\s])", r"\\\1", " ".join(label.split())).replace("\\<", "&lt;").replace("\\&", "&amp;")
