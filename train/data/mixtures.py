"""Recordings decoded once into one memory-mapped file; batches of clean and disturbed speech from them."""

import itertools
import json
import math
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from modeling_edrl_mea.frames import frame_lengths
from modeling_edrl_mea.recordings import SAMPLING_RATE, find_audio, load_recording

from .files import atomic_write

LEVEL = 0.05  # root mean square that openSMILE hears; it leaves 26 dB for peaks
SHORTEST_DESCRIBED = 1600  # samples: below 100 ms openSMILE has no frame of its longest window
N_DESCRIPTORS = 65
DESCRIPTOR_HOP = 160  # samples: 10 ms
MASKED_SPAN = 12  # frames: 240 ms, about a syllable
MASK_SHARE = 0.45  # of the frames of a recording
FOLDER_BALANCE = 0.5  # 1: by number of files; 0: all folders alike


def decode(path: str) -> np.ndarray:
    """Samples (n,) int16 at 16 kHz, channels mixed. RecordingError naming the file if it cannot be read."""
    return (load_recording(path) * 32767).round().clip(-32768, 32767).astype(np.int16)


def opensmile_features(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """openSMILE's ComParE 2016 of samples (n,) int16: functionals (6373,) and low-level descriptors (10 ms frames, 65).

    The recording is first brought to one level: the backbone hears it normalized, and cannot know how loud it was.
    """
    import opensmile

    global _smile  # one a process: it is slow to make
    if "_smile" not in globals():
        levels = opensmile.FeatureLevel.Functionals, opensmile.FeatureLevel.LowLevelDescriptors
        _smile = [opensmile.Smile(opensmile.FeatureSet.ComParE_2016, level) for level in levels]
    signal = samples.astype(np.float32) / 32768
    signal = np.clip(signal * LEVEL / (signal.std() + 1e-6), -1, 1)
    signal = np.pad(signal, (0, max(0, SHORTEST_DESCRIBED - len(signal))))
    functionals, descriptors = (smile.process_signal(signal, SAMPLING_RATE).to_numpy(np.float32) for smile in _smile)
    return np.nan_to_num(functionals[0]), np.nan_to_num(descriptors)


def audio_files(folder: str, leave_out: tuple[str, ...] = ()) -> list[str]:
    """Sorted audio files below a folder but those whose name starts with a prefix in `leave_out`."""
    found = sorted(find_audio(folder))
    found = [str(p) for p in found if not (leave_out and p.name.startswith(leave_out))]
    if not found:
        raise ValueError(f"no audio files below {folder}")
    return found


class Recordings:
    """Decoded recordings of some folders in one memory-mapped int16 file: `recordings[i]` is (n,) float32.

    `files`, `folder_of` (index of the folder each came from) and `lengths` (samples) run in parallel;
    `functionals` is None or (files, 6373); `descriptors(i, start, count)` needs them too.
    """

    def __init__(self, cache: Path):
        index = json.loads((cache / "index.json").read_text())
        self.files, self.folder_of = index["files"], np.array(index["folder_of"])
        self.lengths = np.array(index["lengths"])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.samples = np.memmap(cache / "samples.int16", dtype=np.int16, mode="r")
        self.functionals = None
        if (cache / "functionals.npy").exists():
            self.functionals = np.load(cache / "functionals.npy", mmap_mode="r")
            self._descriptors = np.memmap(cache / "descriptors.f32", np.float32, "r").reshape(-1, N_DESCRIPTORS)
            self._descriptor_starts = np.load(cache / "descriptor_starts.npy")

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.samples[self.starts[i] : self.starts[i + 1]].astype(np.float32) / 32768

    def descriptors(self, i: int, start: int, count: int) -> np.ndarray:
        """(count, 65): what openSMILE says of the 20 ms frames from sample `start` on, two of its frames in each."""
        first, end = self._descriptor_starts[i : i + 2]
        rows = first + start // DESCRIPTOR_HOP + np.arange(2 * count)
        return self._descriptors[np.minimum(rows, end - 1)].reshape(count, 2, N_DESCRIPTORS).mean(1)

    @classmethod
    def build(cls, cache: Path, folders: list[str], leave_out=(), opensmile=False, workers=None):
        """Open the cache of these folders, decoding them first if it is not there or is of other files."""
        per_folder = [audio_files(folder, tuple(leave_out)) for folder in folders]
        files = list(itertools.chain.from_iterable(per_folder))
        index = cache / "index.json"
        if not index.exists() or json.loads(index.read_text())["files"] != files:
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir(parents=True)
            lengths = []
            with ProcessPoolExecutor(workers) as pool, open(cache / "samples.int16", "wb") as out:
                for samples in pool.map(decode, files, chunksize=8):
                    lengths.append(len(samples))
                    samples.tofile(out)
            folder_of = [i for i, found in enumerate(per_folder) for _ in found]
            with atomic_write(index) as temporary:  # last: without it what was decoded does not count
                temporary.write_text(json.dumps({"files": files, "folder_of": folder_of, "lengths": lengths}))
        recordings = cls(cache)
        if opensmile and recordings.functionals is None:
            recordings.describe(cache, workers)
            recordings = cls(cache)
        return recordings

    def describe(self, cache: Path, workers=None):
        """Write openSMILE's functionals and descriptors of every recording into the cache."""
        clips = ((self[i] * 32768).astype(np.int16) for i in range(len(self)))
        functionals, counts = [], [0]
        with ProcessPoolExecutor(workers) as pool, open(cache / "descriptors.f32", "wb") as out:
            described = pool.map(opensmile_features, clips, chunksize=8)
            for found, descriptors in tqdm(described, desc="openSMILE", total=len(self), unit="rec"):
                functionals.append(found)
                counts.append(len(descriptors))
                descriptors.tofile(out)
        np.save(cache / "descriptor_starts.npy", np.cumsum(counts))
        with atomic_write(cache / "functionals.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.stack(functionals))  # last: without it what was described does not count


# --- batches ------------------------------------------------------------------------------------------------


def normalize(signal: np.ndarray) -> np.ndarray:
    """Zero mean, unit variance, as Wav2Vec2FeatureExtractor with do_normalize."""
    return (signal - signal.mean()) / np.sqrt(signal.var() + 1e-7)


def crop(signal: np.ndarray, length: int, rng) -> np.ndarray:
    """A random stretch of `length` samples, the signal repeated if it is shorter."""
    if len(signal) < length:
        signal = np.tile(signal, -(-length // max(len(signal), 1)))
    start = rng.integers(len(signal) - length + 1)
    return signal[start : start + length]


def colored_noise(length: int, rng) -> np.ndarray:
    """Gaussian noise (length,) whose power falls as 1 / f^slope, slope drawn from 0 (white) to 2 (brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum *= np.arange(1, len(spectrum) + 1) ** (-rng.uniform(0, 2) / 2)
    return np.fft.irfft(spectrum, length).astype(np.float32)


def vary(signal: np.ndarray, rng) -> np.ndarray:
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
    are heard more often than their share.
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
            signal = crop(signal, SAMPLING_RATE // 2, rng)
        if rng.random() < self.args.varied_share:
            signal = vary(signal, rng)
        return start, signal + 1e-5 * rng.standard_normal(len(signal)).astype(np.float32)  # no digital silence

    def disturb(self, signal: np.ndarray, rng) -> np.ndarray:
        """The signal with a disturbance at -3 to 20 dB, or as it is."""
        if rng.random() >= self.args.noisy_share:
            return signal
        kind, length = rng.random(), len(signal)
        if kind < 0.5 and self.noise is not None:
            added = sum(crop(self.noise[rng.integers(len(self.noise))], length, rng) for _ in range(2))
        elif kind < 0.65:
            added = colored_noise(length, rng)
        else:  # a second voice, or babble
            voices = 1 if kind < 0.85 else rng.integers(3, 7)
            others = rng.choice(len(self.speech), voices)
            added = sum(normalize(crop(self.speech[i], length, rng)) for i in others)
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
