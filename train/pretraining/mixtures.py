"""Batches of clean speech, of the same speech disturbed, and of which of its frames are hidden."""

import math

import numpy as np
import torch
from torch.utils.data import Dataset

from modeling_edrl_mea.frames import frame_lengths
from modeling_edrl_mea.recordings import SAMPLING_RATE

MASKED_SPAN = 12  # frames: 240 ms, about a syllable
MASK_SHARE = 0.45  # of the frames of a recording
FOLDER_BALANCE = 0.5  # 1: by number of files; 0: all folders alike


def normalize(signal: np.ndarray) -> np.ndarray:
    """Zero mean, unit variance, as Wav2Vec2FeatureExtractor with do_normalize."""
    return (signal - signal.mean()) / np.sqrt(signal.var() + 1e-7)


def _crop(signal: np.ndarray, length: int, rng) -> np.ndarray:
    """A random stretch of `length` samples, the signal repeated if it is shorter."""
    if len(signal) < length:
        signal = np.tile(signal, -(-length // max(len(signal), 1)))
    start = rng.integers(len(signal) - length + 1)
    return signal[start : start + length]


def _colored_noise(length: int, rng) -> np.ndarray:
    """Gaussian noise (length,) whose power falls as 1 / f^slope, slope drawn from 0 (white) to 2 (brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum *= np.arange(1, len(spectrum) + 1) ** (-rng.uniform(0, 2) / 2)
    return np.fft.irfft(spectrum, length).astype(np.float32)


def _vary(signal: np.ndarray, rng) -> np.ndarray:
    """Another voice and microphone: played up to a quarter faster or slower, and two random slopes of its spectrum."""
    speed = 1.25 ** rng.uniform(-1, 1)
    signal = np.interp(np.arange(0, len(signal) - 1, speed), np.arange(len(signal)), signal)
    spectrum = np.fft.rfft(signal)
    octaves = np.log2(np.linspace(0, SAMPLING_RATE / 2, len(spectrum)) / 1000 + 0.1)
    slopes = rng.normal(0, 2.0, 2)  # dB an octave, below and above 1 kHz
    decibels = np.where(octaves < 0, slopes[0], slopes[1]) * octaves
    return np.fft.irfft(spectrum * 10 ** (decibels / 20), len(signal)).astype(np.float32)


class MixtureStream(Dataset):
    """`stream[step]`: one batch, a function of (seed, rank, step) alone.

    noisy, clean (batch, samples) float32 zero-padded, lengths (batch,), mask (batch, frames) bool: frames hidden from
    the model, of which `config` is; where there are functionals, these (batch, k) and descriptors (batch, frames, 65).
    Files are drawn with probability proportional to (files in their folder)^(FOLDER_BALANCE - 1), so that small folders
    are heard more often than their share. `args` are those of scripts/pretrain_backbone.py: seed, batch_size,
    crop_seconds, varied_share, noisy_share, whole_share.
    """

    def __init__(self, speech, noise, functionals, args, config, rank=0):
        self.speech, self.noise, self.functionals = speech, noise, functionals
        self.args, self.config, self.rank = args, config, rank
        counts = np.bincount(speech.folder_of)
        weight = counts[speech.folder_of] ** (FOLDER_BALANCE - 1)
        self.probability = weight / weight.sum()

    def __getitem__(self, step: int) -> dict:
        args, rng = self.args, np.random.default_rng([self.args.seed, self.rank, step])
        picks = rng.choice(len(self.speech), args.batch_size, p=self.probability)
        starts, crops = zip(*(self.clean_crop(i, rng) for i in picks), strict=True)
        longest = max(len(c) for c in crops)
        clean = np.zeros((len(crops), longest), np.float32)
        noisy = np.zeros_like(clean)
        frames = [frame_lengths(self.config, len(signal)) for signal in crops]
        mask = np.zeros((len(crops), max(frames)), bool)
        for i, signal in enumerate(crops):
            clean[i, : len(signal)] = normalize(signal)
            noisy[i, : len(signal)] = normalize(self.disturb(signal, rng))
            mask[i, : frames[i]] = self.span_mask(frames[i], rng)
        batch = {
            "clean": torch.from_numpy(clean),
            "noisy": torch.from_numpy(noisy),
            "mask": torch.from_numpy(mask),
            "lengths": torch.tensor([len(c) for c in crops]),
        }
        if self.functionals is not None:
            described = [self.speech.descriptors(*at, mask.shape[1]) for at in zip(picks, starts, strict=True)]
            batch["descriptors"] = torch.from_numpy(np.stack(described))
            batch["functionals"] = torch.from_numpy(self.functionals[picks])
        return batch

    def clean_crop(self, i: int, rng) -> tuple[int, np.ndarray]:
        """Where it starts, and a stretch of recording i of at most `crop_seconds`."""
        start, signal, longest = 0, self.speech[i], int(self.args.crop_seconds * SAMPLING_RATE)
        if len(signal) > longest:
            start = int(rng.integers(len(signal) - longest + 1))
            signal = signal[start : start + longest]
        elif len(signal) < SAMPLING_RATE // 2:  # too little to mask anything; its descriptors are roughly placed then
            signal = _crop(signal, SAMPLING_RATE // 2, rng)
        if rng.random() < self.args.varied_share:
            signal = _vary(signal, rng)
        return start, signal + 1e-5 * rng.standard_normal(len(signal)).astype(np.float32)  # no digital silence

    def disturb(self, signal: np.ndarray, rng) -> np.ndarray:
        """The signal with a disturbance at -3 to 20 dB, or as it is."""
        if rng.random() >= self.args.noisy_share:
            return signal
        kind, length = rng.random(), len(signal)
        if kind < 0.5 and self.noise is not None:
            added = sum(_crop(self.noise[rng.integers(len(self.noise))], length, rng) for _ in range(2))
        elif kind < 0.65:
            added = _colored_noise(length, rng)
        else:  # a second voice, or babble
            voices = 1 if kind < 0.85 else rng.integers(3, 7)
            others = rng.choice(len(self.speech), voices)
            added = sum(normalize(_crop(self.speech[i], length, rng)) for i in others)
        snr = rng.uniform(-3, 20)
        gain = np.sqrt(signal.var() / (added.var() + 1e-9) * 10 ** (-snr / 10))
        return signal + (gain * added).astype(np.float32)

    def span_mask(self, frames: int, rng) -> np.ndarray:
        """Spans of MASKED_SPAN over about MASK_SHARE of the frames; none in `whole_share` of the recordings."""
        mask = np.zeros(frames, bool)
        if frames > MASKED_SPAN and rng.random() >= self.args.whole_share:
            # n spans placed at random leave exp(-n MASKED_SPAN / frames) of the frames uncovered
            spans = round(-math.log(1 - MASK_SHARE) * frames / MASKED_SPAN)
            for start in rng.integers(0, frames - MASKED_SPAN + 1, spans):
                mask[start : start + MASKED_SPAN] = True
        return mask
