"""The recordings that backbones are probed on, clean and with noise that is the same each time."""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_edrl_mea.recordings import load_recording
from train.data.corpora import load_corpus
from train.degradation.effects import mix_at_snr

CONDITIONS = {"clean": None, "10 dB": 10.0, "0 dB": 0.0}  # signal-to-noise ratios


@dataclass
class Corpus:
    """Recordings of four emotions of one corpus."""

    name: str
    files: list[str]
    emotions: np.ndarray  # class ids
    speakers: np.ndarray

    def select(self, rows: np.ndarray) -> "Corpus":
        return Corpus(self.name, [self.files[row] for row in rows], self.emotions[rows], self.speakers[rows])


def read_corpus(source: str, at_most: int) -> Corpus:
    """The recordings of four emotions of a corpus; of more than `at_most`, a sample fixed by name."""
    dataset = load_corpus(source, label_scheme="four_emotions")
    folder = source.rpartition("=")[2]
    names = [os.path.relpath(path, folder) for path in dataset["audio"]]
    chosen = sorted(range(len(names)), key=lambda row: zlib.crc32(names[row].encode()))[:at_most]
    rows = dataset.select(sorted(chosen, key=lambda row: names[row]))
    return Corpus(rows["corpus"][0], list(rows["audio"]), np.array(rows["label"]), np.array(rows["speaker"]))


def noisy(path: str, noise: list[str], snr: float | None) -> np.ndarray:
    """The recording with a stretch of noise at `snr` dB; which one depends on the file's name alone."""
    signal = load_recording(path)
    if snr is None:
        return signal
    rng = np.random.default_rng(zlib.crc32(Path(path).name.encode()))
    stretch = np.zeros(1)
    while stretch.var() < 1e-8:  # ESC clips are padded with silence
        recording = load_recording(noise[rng.integers(len(noise))])
        recording = np.tile(recording, -(-len(signal) // len(recording)) + 1)
        start = rng.integers(len(recording) - len(signal) + 1)
        stretch = recording[start : start + len(signal)]
    return mix_at_snr(signal, stretch, snr)
