"""Labeled recordings and their noisy copies: as waveforms for a backbone that learns, as embeddings for one that does
not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_edrl_mea import EdrlMeaFeatureExtractor, load_recording
from modeling_edrl_mea.embeddings import Embeddings, balanced_weights
from modeling_edrl_mea.recordings import SAMPLING_RATE
from modeling_edrl_mea.targets import IGNORED

from .embeddings import EmbeddingCache
from .ratings import attributes_of
from .recordings import NO_LABEL, CorpusError, recording_names

if TYPE_CHECKING:
    from train.degradation.augmentation import Augmentation


@dataclass
class SpeechDataset(torch.utils.data.Dataset):
    """The recordings of `dataset` (columns audio, label, speaker, corpus, shares and ratings where there are any), then
    `n_copies` augmented copies of all.

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
        # What noise is drawn from: the same for a recording whatever else there is.
        names = zip(self.dataset["corpus"], recording_names(self.audio), strict=True)
        self.names = [f"{corpus}/{name}" for corpus, name in names]
        labels = torch.tensor(self.dataset["label"])
        labels = labels.masked_fill(labels == NO_LABEL, IGNORED)
        self.shares, self.attributes = shares_of(self.dataset, labels), ratings_of(self.dataset)
        for name in ("shares", "attributes"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).repeat(1 + self.n_copies, 1))
        self.labels = labels.repeat(1 + self.n_copies)
        self.corpora = list(self.dataset["corpus"]) * (1 + self.n_copies)
        self.sample_weights = balanced_weights(self.labels, self.corpora)

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @cached_property
    def lengths(self) -> list[int]:
        """Samples of each recording and copy as the dataset gives them; decodes all recordings once."""
        limit = self._limit or float("inf")
        return [int(min(len(load_recording(recording)), limit)) for recording in self.audio] * (1 + self.n_copies)

    @property
    def _limit(self) -> int | None:
        """Samples that a recording has at most."""
        return self.max_length_seconds and int(self.max_length_seconds * SAMPLING_RATE)

    def __getitem__(self, row: int) -> dict:
        copy, original = divmod(row, len(self.audio))
        waveform = load_recording(self.audio[original])
        if copy:
            waveform = self.augmentation(waveform, f"{self.names[original]}#{copy - 1}@{self.epoch}")
        about = {
            "waveform": self._stretch(waveform, row),
            "labels": (self.labels if self.shares is None else self.shares)[row],
            "sample_weights": self.sample_weights[row],
        }
        return about if self.attributes is None else about | {"attributes": self.attributes[row]}

    def _stretch(self, waveform: np.ndarray, row: int) -> np.ndarray:
        limit = self._limit
        if not limit or len(waveform) <= limit:
            return waveform
        start = np.random.default_rng([self.seed, self.epoch, row]).integers(len(waveform) - limit + 1)
        return waveform[start : start + limit]

    def embed(self, cache: EmbeddingCache, condition=None) -> Embeddings:
        """Whole recordings, by the backbone as it is now; each copy keeps its link to its clean original.

        condition: a corruption that the recordings are tested under.
        """
        chunks = self.chunks(cache, condition)
        for copy in range(self.n_copies):
            chunks += self.chunks(cache, copy=copy, title=f"noisy copy {copy + 1} of {self.n_copies}")
        repeats = 1 + self.n_copies
        speakers, originals = list(self.dataset["speaker"]) * repeats, torch.arange(len(self.audio)).repeat(repeats)
        known = self.labels, speakers, originals, self.corpora, self.shares, self.attributes
        return Embeddings(cache.joined(chunks), *known)

    def chunks(self, cache: EmbeddingCache, condition=None, copy: int | None = None, title: str = "") -> list[Path]:
        """Files of the cache with the recordings' statistics: as recorded, in a condition, or of one noisy copy."""
        if copy is None:
            return cache.chunks(self.audio, condition, title=title or self.title)
        keys = [f"{name}#{copy}" for name in self.names]
        return cache.chunks(self.audio, self.augmentation, keys, title or self.title)


def shares_of(dataset: Mapping, labels: torch.Tensor) -> torch.Tensor | None:
    """(N, C) soft labels of a dataset that has shares, -100 where there is no label; None where it has none."""
    if "shares" not in getattr(dataset, "column_names", ()):
        return None
    names = dataset.features["label"].names
    rows = torch.nn.functional.one_hot(labels.clamp_min(0), len(names)).float()
    for row, shares in enumerate(dataset["shares"]):
        if shares is not None:
            found = json.loads(shares)
            rows[row] = torch.tensor([found.get(name, 0.0) for name in names])
    return rows.masked_fill((labels == IGNORED)[:, None], IGNORED)


def ratings_of(dataset: Mapping) -> torch.Tensor | None:
    """(N, A) ratings of the dataset's attributes; None where it has none."""
    names = attributes_of(dataset)
    return torch.tensor([list(dataset[name]) for name in names]).T.contiguous() if names else None


@dataclass
class WaveformCollator:
    """Rows of [`SpeechDataset`] to a padded batch for `forward`."""

    feature_extractor: EdrlMeaFeatureExtractor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.feature_extractor(
            [row["waveform"] for row in rows], sampling_rate=SAMPLING_RATE, return_tensors="pt"
        )
        known = [name for name in rows[0] if name != "waveform"]
        return dict(batch) | {name: torch.stack([row[name] for row in rows]) for name in known}


# --- batches ---


class EpochBatches(Sampler[list[int]]):
    """Batches of a shuffled epoch, each divided among the processes.

    The batches are those that one process would form: `batch_size` recordings over all processes, every recording once
    an epoch, none repeated to fill the last batch. Where the last batch has fewer recordings than there are processes
    it joins the one before. The order is a function of seed and epoch alone.

    `lengths`: samples of each recording, where those of a batch are to be of like length, so that little is padded.
    """

    def __init__(self, dataset, batch_size: int, seed: int, rank: int = 0, n_processes: int = 1, lengths=None):
        if len(dataset) < n_processes:
            raise CorpusError(f"{len(dataset)} recordings cannot be divided among {n_processes} processes.")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.n_processes, self.lengths = rank, n_processes, lengths
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return max(1, whole + (rest >= self.n_processes))

    def __iter__(self):
        ends = [self.batch_size * (i + 1) for i in range(len(self) - 1)]
        for batch in np.split(self._order(), ends):
            yield np.array_split(batch, self.n_processes)[self.rank].tolist()

    def _order(self) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.lengths is None:
            return rng.permutation(len(self.dataset))
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        return np.array(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class EpochLoader(DataLoader):
    """A `DataLoader` over [`EpochBatches`] that hands the epoch on to it."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def epoch_loader(dataset, args, collate_fn) -> EpochLoader:
    """For `TrainingArguments`; a drop-in for what `Trainer.get_train_dataloader` returns."""
    batches = EpochBatches(
        dataset,
        args.per_device_train_batch_size * args.world_size,
        args.data_seed if args.data_seed is not None else args.seed,
        args.process_index,
        args.world_size,
        getattr(dataset, "lengths", None) if args.train_sampling_strategy == "group_by_length" else None,
    )
    return EpochLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate_fn,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
    )
