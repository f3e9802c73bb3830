"""A regularized linear discriminant for emotions, from sums over recordings: in memory that does not grow with their
number. How sure it is, is chosen on recordings held out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .linear_heads import ABSENT, LinearHead, parts, whole

RIDGE = 3.0  # of 1 to 30 the best for corpora left out; chosen anew in each training it served others worse
BETWEEN_CORPORA = 3.0  # times that scatter counts: others will differ in more than a few corpora do


def fit_discriminant(
    features, labels: Tensor, sample_weights: Tensor, n_classes: int, folds: list, corpora: Sequence[str] = ()
) -> LinearHead:
    """Regularized linear discriminant analysis (Friedman 1989) of features of about unit variance, labels (N,).

    All classes share one covariance Σ of the features around their class, and come equally often. The logits are then

        (Σ + r·I)⁻¹μ_c · x − ½ μ_c'(Σ + r·I)⁻¹μ_c

    In Σ, weighted so that every corpus counts the same, stand the directions in which a class differs between corpora,
    speakers and noisy copies, so these count less; those between the corpora that are named [`BETWEEN_CORPORA`] times.

    `features`: (N, p), a tensor or anything else that has a `shape` and whose `split(n)` gives n rows at a time. They
    are gone through a few times and not kept, unless there are fewer rows than columns.
    `folds`: pairs of rows to fit, which are all the others, and to test on. By them the logits are scaled to what they
    are worth on recordings held out (log-likelihood).
    """
    n, p = features.shape
    if p > n:  # all that matters lies in the span of the rows, and p x p numbers would be more than these
        rows = whole(features)
        basis = torch.linalg.qr(rows.T).Q
        head = fit_discriminant(rows @ basis, labels, sample_weights, n_classes, folds, corpora)
        return LinearHead(head.weight @ basis.T, head.bias, head.regularization)
    data = _Classes(features, labels, sample_weights.double(), _numbered(corpora, n), n_classes)
    tests = [_chosen_rows(n, test) for _, test in folds]
    found, heads = data.discriminants_without(tests)
    scale = data.scale(tests, heads) if folds else 1.0
    return LinearHead(found.weight * scale, found.bias * scale, found.regularization)


def _numbered(corpora: Sequence[str], n: int) -> Tensor:
    """(n,) the place of each row's corpus; 0 where none is named."""
    ids = {name: place for place, name in enumerate(dict.fromkeys(corpora))}
    return torch.tensor([ids[name] for name in corpora]) if ids else torch.zeros(n, dtype=torch.int64)


def _chosen_rows(n: int, rows) -> Tensor:
    """(n,) whether a row is one of `rows`."""
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, torch.as_tensor(rows), True)


class _Classes(NamedTuple):
    """Rows with what a discriminant needs to know of each."""

    features: Any  # (N, p)
    labels: Tensor
    weights: Tensor
    corpora: Tensor
    n_classes: int

    def sums_of(self, sets: Sequence[Tensor]) -> list["ClassSums"]:
        """Of each set of rows (N,), in one pass over them."""
        sums = [ClassSums(self.n_classes, self.features.shape[1], 1 + int(self.corpora.max())) for _ in sets]
        for rows, part in parts(self.features):
            for one, chosen in zip(sums, sets, strict=True):
                here = chosen[rows]
                one.add(part[here], *(about[rows][here] for about in (self.labels, self.weights, self.corpora)))
        return sums

    def discriminants_without(self, sets: Sequence[Tensor]) -> tuple[LinearHead, list[LinearHead]]:
        """Of all rows, and of all but those in each set."""
        n, p = self.features.shape
        at_once = max(1, n // p)  # sums take no more memory than the features would
        sets = [torch.ones(n, dtype=torch.bool), *sets]
        sums = (one for start in range(0, len(sets), at_once) for one in self.sums_of(sets[start : start + at_once]))
        total = next(sums)
        return total.discriminant(), [(total - one).discriminant() for one in sums]

    def scale(self, sets: Sequence[Tensor], heads: Sequence[LinearHead]) -> float:
        """Of the logits of each set's rows by its discriminant."""
        logits, kept = [], []
        for rows, part in parts(self.features):
            for chosen, head in zip(sets, heads, strict=True):
                here = chosen[rows]
                logits.append(head.logits(part[here]))
                kept.append(rows.start + here.nonzero()[:, 0])
        kept = torch.cat(kept)
        return best_scale(torch.cat(logits), self.labels[kept], self.weights[kept])


class ClassSums:
    """Sums over rows of features, by corpus and class: all of them that a discriminant needs. They add up and
    subtract."""

    def __init__(self, n_classes: int, n_features: int, n_corpora: int = 1):
        self.counts = torch.zeros(n_corpora, n_classes, dtype=torch.int64)
        self.weights = torch.zeros(n_corpora, n_classes, dtype=torch.float64)
        self.sums = torch.zeros(n_corpora, n_classes, n_features, dtype=torch.float64)  # weighted, as are the products
        self.products = torch.zeros(n_features, n_features, dtype=torch.float64)  # of all together

    def add(self, features: Tensor, labels: Tensor, weights: Tensor, corpora: Tensor | None = None) -> "ClassSums":
        """Features (n, p), labels (n,), weights (n,) and places of corpora (n,)."""
        place = labels if corpora is None else corpora * self.counts.shape[1] + labels
        self.counts += place.bincount(minlength=self.counts.numel()).view_as(self.counts)
        self.weights.view(-1).index_add_(0, place, weights)
        weighted = features * weights[:, None]
        self.sums.flatten(0, 1).index_add_(0, place, weighted)
        self.products.addmm_(features.T, weighted)
        return self

    def __sub__(self, other: "ClassSums") -> "ClassSums":
        n_corpora, n_classes, n_features = self.sums.shape
        difference = ClassSums(n_classes, n_features, n_corpora)
        for name, value in vars(self).items():
            setattr(difference, name, value - getattr(other, name))
        return difference

    def discriminant(self, ridge: float = RIDGE) -> LinearHead:
        absent = self.counts.sum(0) == 0
        sums, weights = self.sums.sum(0), self.weights.sum(0)
        means = (sums / weights.clamp_min(1e-12)[:, None]).masked_fill(absent[:, None], 0)
        covariance = (self.products - sums.T @ means) / weights.sum()
        covariance += (BETWEEN_CORPORA - 1) * self._between_corpora(means)
        covariance.diagonal().add_(ridge)
        weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance)).T
        bias = -(means * weight).sum(1) / 2
        # The same for all classes changes no probability.
        weight, bias = weight - weight[~absent].mean(0), bias - bias[~absent].mean()
        weight[absent], bias[absent] = 0.0, ABSENT
        return LinearHead(weight, bias, ridge)

    def _between_corpora(self, means: Tensor) -> Tensor:
        """(p, p) scatter of the classes' means in each corpus around those over all."""
        own = self.sums / self.weights.clamp_min(1e-12)[..., None]
        around = (own - means).masked_fill((self.counts == 0)[..., None], 0).flatten(0, 1)
        return around.T @ (around * self.weights.flatten()[:, None]) / self.weights.sum()


def best_scale(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """The factor of the logits under which the labels are most likely."""
    from scipy.optimize import minimize_scalar

    def loss(log_scale: float) -> float:
        return float(
            (torch.nn.functional.cross_entropy(np.exp(log_scale) * logits, labels, reduction="none") * weights).sum()
        )

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))
