"""Recordings as a frozen backbone sees them, with what training needs to know of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .targets import IGNORED

ROWS = 512  # recordings per pass through the heads


@dataclass
class Embeddings(torch.utils.data.Dataset):
    """Layer statistics of N recordings with what training needs to know of each; a dataset for `Trainer`."""

    layer_statistics: torch.Tensor  # (N, L+1, S')
    labels: torch.Tensor  # (N,) ids; -100 for a recording that has none
    speakers: list[str]
    clean_rows: torch.Tensor  # (N,) row of each recording's clean original: its own unless it is a noisy copy
    corpora: list[str] = field(default_factory=list)  # (N,) names; none: all of one corpus
    shares: torch.Tensor | None = None  # (N, C) soft labels, instead of `labels` in training
    attributes: torch.Tensor | None = None  # (N, A) ratings; NaN where missing

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict:
        about = {"labels": self.targets[row], "sample_weights": self.sample_weights[row]}
        about["layer_statistics"] = self.layer_statistics[row]
        return about if self.attributes is None else about | {"attributes": self.attributes[row]}

    @property
    def targets(self) -> torch.Tensor:
        """Labels as the loss takes them: soft ones where there are any."""
        return self.labels if self.shares is None else self.shares

    @property
    def sample_weights(self) -> torch.Tensor:
        """(N,) weights of [`balanced_weights`]."""
        if not hasattr(self, "_sample_weights"):
            self._sample_weights = balanced_weights(self.labels, self.corpora)
        return self._sample_weights

    def with_copies(self, copies: Sequence[torch.Tensor]) -> "Embeddings":
        """These recordings followed by noisy copies of all of them, each linked to its clean original."""
        repeats = 1 + len(copies)
        soft, rated = (part if part is None else part.repeat(repeats, 1) for part in (self.shares, self.attributes))
        return Embeddings(
            torch.cat([self.layer_statistics, *copies]),
            self.labels.repeat(repeats),
            self.speakers * repeats,
            self.clean_rows.repeat(repeats),
            self.corpora * repeats,
            soft,
            rated,
        )


def balanced_weights(labels: torch.Tensor, corpora: Sequence[str] = ()) -> torch.Tensor:
    """(N,) weights, of mean 1, under which every class counts the same, and in it every corpus that has it:
    otherwise a large corpus alone would decide how an emotion sounds elsewhere. 1 for those without a label."""
    labeled = labels != IGNORED
    if not labeled.all():
        weights, names = torch.ones(len(labels)), [corpora[row] for row in labeled.nonzero()[:, 0]] if corpora else ()
        if labeled.any():
            weights[labeled] = balanced_weights(labels[labeled], names)
        return weights
    ids = {name: number for number, name in enumerate(dict.fromkeys(corpora))}
    corpus = torch.tensor([ids[name] for name in corpora]) if ids else torch.zeros_like(labels)
    counts = torch.zeros(int(labels.max()) + 1, max(len(ids), 1)).index_put_(
        (labels, corpus), torch.ones(len(labels)), accumulate=True
    )
    shares = (counts > 0).sum(1)  # corpora that have the class
    return len(labels) / ((shares > 0).sum() * shares[labels] * counts[labels, corpus])
