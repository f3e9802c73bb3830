"""Labelled recordings and their noisy copies: as waveforms for a backbone that learns, as embeddings for one that does
not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from modeling_edrl_mea import EdrlMeaFeatureExtractor, load_recording

from .embeddings import EmbeddingCache, Embeddings, balanced_weights

if TYPE_CHECKING:
    from .augmentation import Augmentation

SAMPLING_RATE = 16_000


@dataclass
class Speech(torch.utils.data.Dataset):
    """The recordings of `dataset` (columns audio, label, speaker, corpus), then `n_copies` augmented copies of all.

    As a dataset it gives waveforms, for stage 1: cut to a random stretch of `max_length_seconds`, and with other noise
    in every epoch. What is random is a function of seed, epoch and row, so that a resumed run sees what it would have.
    """

    dataset: Mapping
    title: str
    augmentation: Augmentation | None = None
    n_copies: int = 0
    max_length_seconds: float | None = None
    seed: int = 0

    def __post_init__(self):
        self.epoch = 0
        self.audio = list(self.dataset["audio"])
        self.names = [f"{corpus}/{row}" for row, corpus in enumerate(self.dataset["corpus"])]
        self.labels = torch.tensor(self.dataset["label"]).repeat(1 + self.n_copies)
        self.corpora = list(self.dataset["corpus"]) * (1 + self.n_copies)
        self.sample_weights = balanced_weights(self.labels, self.corpora)

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, row: int) -> dict:
        copy, original = divmod(row, len(self.audio))
        waveform = load_recording(self.audio[original])
        if copy:
            waveform = self.augmentation(waveform, f"{self.names[original]}#{copy - 1}@{self.epoch}")
        return {
            "waveform": self._stretch(waveform, row),
            "labels": self.labels[row],
            "sample_weights": self.sample_weights[row],
        }

    def _stretch(self, waveform: np.ndarray, row: int) -> np.ndarray:
        limit = self.max_length_seconds and int(self.max_length_seconds * SAMPLING_RATE)
        if not limit or len(waveform) <= limit:
            return waveform
        start = np.random.default_rng([self.seed, self.epoch, row]).integers(len(waveform) - limit + 1)
        return waveform[start : start + limit]

    def embed(self, cache: EmbeddingCache, condition=None) -> Embeddings:
        """Whole recordings, by the backbone as it is now; each copy keeps its link to its clean original.

        condition: a corruption that the recordings are tested under.
        """
        chunks = cache.chunks(self.audio, condition, title=self.title)
        for copy in range(self.n_copies):
            names, title = [f"{name}#{copy}" for name in self.names], f"noisy copy {copy + 1} of {self.n_copies}"
            chunks += cache.chunks(self.audio, self.augmentation, names, title)
        repeats = 1 + self.n_copies
        speakers, originals = list(self.dataset["speaker"]) * repeats, torch.arange(len(self.audio)).repeat(repeats)
        return Embeddings(cache.joined(chunks), self.labels, speakers, originals, self.corpora)


@dataclass
class WaveformCollator:
    """Rows of [`Speech`] to a padded batch for `forward`."""

    feature_extractor: EdrlMeaFeatureExtractor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.feature_extractor(
            [row["waveform"] for row in rows], sampling_rate=SAMPLING_RATE, return_tensors="pt"
        )
        return dict(batch) | {name: torch.stack([row[name] for row in rows]) for name in ("labels", "sample_weights")}
