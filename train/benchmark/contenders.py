"""What takes part in the benchmark, finished models and recipes alike, and what each is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from modeling_edrl_mea.embeddings import Embeddings
from train.data.dataset import SpeechDataset, ratings_of
from train.data.embeddings import EmbeddingCache
from train.evaluation.predictions import AdaptationMode, attributes_by

from .protocols import Trial

HELD_IN_MEMORY = 4 * 2**30  # bytes of statistics; reading them back from a thousand files takes a second a trial


class Contender(Protocol):
    """One row of the benchmark, or one a mode of adaptation."""

    name: str
    source: str
    classes: list[str]  # in the order of the probabilities
    cache: EmbeddingCache
    parameters: int
    noisy_copies: int  # of each recording that it trains on
    modes: Sequence[AdaptationMode]  # in which it predicts
    trained_on: tuple[str, ...]  # corpora that it was trained on before the benchmark
    folder: str | None  # of its weights
    settings: dict  # everything that changes its predictions but the recordings; JSON-able
    given_settings: dict | None  # what the file of a recipe sets
    temperature_fitted_on: str
    embedding_name: str

    def trials(
        self, planned: Sequence[Trial], corpora: Mapping, test_rows: Mapping[str, np.ndarray]
    ) -> Sequence[Trial]:
        """Those of the planned trials that it takes part in, or its own. `test_rows`: of corpora that a list narrows
        for models that are not trained here."""

    def notes(self, corpora: Mapping) -> list[str]:
        """What it was trained on before, as far as that touches the tests; for the report."""

    def run(self, trial: Trial, data: "BenchmarkData", conditions: Sequence) -> "TrialPredictions":
        """Its predictions for the trial's tests in each condition."""


@dataclass
class TrialPredictions:
    """Predictions in one trial: probabilities (n, C) by mode of adaptation, corpus, and condition's fingerprint or
    "clean"; among them, as mode "attributes", what is rated (n, A), which adaptation leaves as it is; temperatures (n,)
    fitted on other speakers, by mode and corpus, where there are any."""

    probabilities: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)
    temperatures: dict[tuple[AdaptationMode, str], np.ndarray] = field(default_factory=dict)

    def rate(self, model, statistics: torch.Tensor, corpus: str, condition) -> None:
        """Add what a model rates of recordings with these layer statistics, where it rates anything."""
        if model.config.n_attributes:
            self.probabilities["attributes", corpus, condition_key(condition)] = attributes_by(model, statistics)


class BenchmarkData:
    """Statistics of every corpus in every condition, by the cache of one backbone."""

    def __init__(self, corpora: Mapping, cache: EmbeddingCache, augmentation=None):
        self.corpora, self.cache = corpora, cache
        self._speech = {name: SpeechDataset(dataset, name, augmentation) for name, dataset in corpora.items()}
        self._held: dict[tuple, torch.Tensor] = {}  # least recently used first

    def statistics(self, corpus: str, condition=None, copy: int | None = None, title: str = "") -> torch.Tensor:
        """Layer statistics (N, L+1, S') of a whole corpus as recorded, in a condition, or of a noisy copy of it."""
        place = corpus, condition_key(condition), copy
        found = self._held.pop(place, None)
        if found is None:
            found = self.cache.joined(self._speech[corpus].chunks(self.cache, condition, copy, title or corpus))
        self._held[place] = found
        while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > HELD_IN_MEMORY:
            self._held.pop(next(iter(self._held)))
        return found

    def embeddings(self, rows: Mapping[str, np.ndarray], noisy_copies: int = 0) -> Embeddings:
        """The recordings of some rows by corpus, with noisy copies of all of them."""
        labels, speakers = (
            np.concatenate([np.array(self.corpora[name][column])[picked] for name, picked in rows.items()])
            for column in ("label", "speaker")
        )
        names = [name for name, picked in rows.items() for _ in picked]
        clean, *copies = (
            torch.cat([self.statistics(name, copy=copy)[picked] for name, picked in rows.items()])
            for copy in (None, *range(noisy_copies))
        )
        ratings = [ratings_of(self.corpora[name].select(picked)) for name, picked in rows.items()]
        known = {} if ratings[0] is None else {"attributes": torch.cat(ratings)}
        about = speakers.tolist(), torch.arange(len(labels)), names
        data = Embeddings(clean, torch.from_numpy(labels), *about, **known)
        return data.with_copies(copies) if copies else data


def condition_key(condition) -> str:
    return "clean" if condition is None else condition.fingerprint
