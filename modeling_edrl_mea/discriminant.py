"""A regularized linear discriminant for emotions, from sums over recordings: in memory that does not grow with their
number. What regularizes it, and how sure it is, is chosen on recordings held out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .linear_heads import ABSENT, LinearHead, in_span_of_rows, parts

DISCRIMINANT_RIDGES, RIDGE_OF_ONE_SPEAKER = (1.0, 3.0, 10.0), 3.0  # the latter where nothing can be held out


def fit_discriminant(features, labels: Tensor, sample_weights: Tensor, n_classes: int, folds: list) -> LinearHead:
    """Regularized linear discriminant analysis (Friedman 1989) of features of about unit variance, labels (N,).

    All classes share one covariance Σ of the features around their class, and come equally often. The logits are then

        (Σ + r·I)⁻¹μ_c · x − ½ μ_c'(Σ + r·I)⁻¹μ_c

    In Σ, weighted so that every corpus counts the same, stand the directions in which a class differs between corpora,
    speakers and noisy copies, so these count less.

    `features`: (N, p), a tensor or anything else that has a `shape` and whose `split(n)` gives n rows at a time. They
    are gone through a few times and not kept, unless there are fewer rows than columns.
    `folds`: pairs of rows to fit, which are all the others, and to test on. By them r is chosen (recall averaged over
    classes) and the logits are scaled to what they are worth on recordings held out (log-likelihood).
    """
    n, p = features.shape
    if p > n:
        return in_span_of_rows(features, lambda rows: fit_discriminant(rows, labels, sample_weights, n_classes, folds))
    data = _Classes(features, labels, sample_weights.double(), n_classes)
    tests = [_chosen_rows(n, test) for _, test in folds]
    total, heads = data.total_and_discriminants_without(tests)
    if not folds:
        return total.discriminants((RIDGE_OF_ONE_SPEAKER,))[0]
    best, scale = _best_ridge_and_scale(data, tests, heads)
    (found,) = total.discriminants((DISCRIMINANT_RIDGES[best],))
    return LinearHead(found.weight * scale, found.bias * scale, found.regularization)


def _chosen_rows(n: int, rows) -> Tensor:
    """(n,) whether a row is one of `rows`."""
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, torch.as_tensor(rows), True)


class _Classes(NamedTuple):
    """Rows with what a discriminant needs to know of each."""

    features: Any  # (N, p)
    labels: Tensor
    weights: Tensor
    n_classes: int

    def sums_of(self, sets: Sequence[Tensor]) -> list["ClassSums"]:
        """Of each set of rows (N,), in one pass over them."""
        sums = [ClassSums(self.n_classes, self.features.shape[1]) for _ in sets]
        for rows, part in parts(self.features):
            for one, chosen in zip(sums, sets, strict=True):
                here = chosen[rows]
                one.add(part[here], self.labels[rows][here], self.weights[rows][here])
        return sums

    def total_and_discriminants_without(self, sets: Sequence[Tensor]) -> tuple["ClassSums", list[list[LinearHead]]]:
        """Sums of all rows, and discriminants of all but those in each set, for every ridge."""
        n, p = self.features.shape
        at_once = max(1, n // p)  # sums take no more memory than the features would
        sets = [torch.ones(n, dtype=torch.bool), *sets]
        sums = (one for start in range(0, len(sets), at_once) for one in self.sums_of(sets[start : start + at_once]))
        total = next(sums)
        return total, [(total - one).discriminants(DISCRIMINANT_RIDGES) for one in sums]

    def logits_of(self, sets: Sequence[Tensor], heads: Sequence[list[LinearHead]]) -> list[Tensor]:
        """(ridges, n, C) of the n rows of each set by its discriminants."""
        sizes = ((len(DISCRIMINANT_RIDGES), int(chosen.sum()), self.n_classes) for chosen in sets)
        found, filled = [torch.empty(size, dtype=torch.float64) for size in sizes], [0] * len(sets)
        for rows, part in parts(self.features):
            for i, chosen in enumerate(sets):
                here = part[chosen[rows]]
                found[i][:, filled[i] : filled[i] + len(here)] = torch.stack([one.logits(here) for one in heads[i]])
                filled[i] += len(here)
        return found


def _best_ridge_and_scale(data: _Classes, tests: Sequence[Tensor], heads) -> tuple[int, float]:
    from sklearn.metrics import recall_score

    recalls, held_out = np.zeros(len(DISCRIMINANT_RIDGES)), data.logits_of(tests, heads)
    for test, logits in zip(tests, held_out, strict=True):
        labels = data.labels[test]
        recalls += [recall_score(labels, one.argmax(1), labels=labels.unique(), average="macro") for one in logits]
    best = int(recalls.argmax())
    labels, weights = (torch.cat([part[test] for test in tests]) for part in (data.labels, data.weights))
    return best, best_scale(torch.cat([logits[best] for logits in held_out]), labels, weights)


class ClassSums:
    """Sums over rows of features, by class: all of them that a discriminant needs. They add up and subtract."""

    def __init__(self, n_classes: int, n_features: int):
        self.counts = torch.zeros(n_classes, dtype=torch.int64)
        self.weights = torch.zeros(n_classes, dtype=torch.float64)
        self.sums = torch.zeros(n_classes, n_features, dtype=torch.float64)  # weighted, as are the products
        self.products = torch.zeros(n_features, n_features, dtype=torch.float64)  # of all classes together

    def add(self, features: Tensor, labels: Tensor, weights: Tensor) -> "ClassSums":
        """Features (n, p), labels (n,) and weights (n,)."""
        self.counts += labels.bincount(minlength=len(self.counts))
        self.weights.index_add_(0, labels, weights)
        weighted = features * weights[:, None]
        self.sums.index_add_(0, labels, weighted)
        self.products.addmm_(features.T, weighted)
        return self

    def __sub__(self, other: "ClassSums") -> "ClassSums":
        difference = ClassSums(*self.sums.shape)
        for name, value in vars(self).items():
            setattr(difference, name, value - getattr(other, name))
        return difference

    def discriminants(self, ridges: Sequence[float]) -> list[LinearHead]:
        """One for each ridge, from the same covariance."""
        absent = self.counts == 0
        means = (self.sums / self.weights.clamp_min(1e-12)[:, None]).masked_fill(absent[:, None], 0)
        covariance = (self.products - self.sums.T @ means) / self.weights.sum()
        unit = torch.eye(len(covariance), dtype=covariance.dtype)
        found = []
        for ridge in ridges:
            factor = torch.linalg.cholesky(covariance + ridge * unit)
            found.append(_discriminant(means, torch.cholesky_solve(means.T, factor).T, absent, ridge))
        return found


def _discriminant(means: Tensor, weight: Tensor, absent: Tensor, ridge: float) -> LinearHead:
    bias = -(means * weight).sum(1) / 2
    # The same for all classes changes no probability.
    weight, bias = weight - weight[~absent].mean(0), bias - bias[~absent].mean()
    weight[absent], bias[absent] = 0.0, ABSENT
    return LinearHead(weight, bias, ridge)


def best_scale(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """The factor of the logits under which the labels are most likely."""
    from scipy.optimize import minimize_scalar

    def loss(log_scale: float) -> float:
        return float(
            (torch.nn.functional.cross_entropy(np.exp(log_scale) * logits, labels, reduction="none") * weights).sum()
        )

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))
