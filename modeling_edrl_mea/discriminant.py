"""A linear classifier in closed form: regularized linear discriminant analysis (Friedman 1989).

All classes share one covariance Σ of the features around their class, and come equally often. The logits are then

    (Σ + r·I)⁻¹μ_c · x − ½ μ_c'(Σ + r·I)⁻¹μ_c

In Σ, weighted so that every corpus counts the same, stand the directions in which a class differs between corpora,
speakers and noisy copies, so these count less.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RIDGES = (0.3, 1.0, 3.0, 10.0)  # r, for features of unit variance
RIDGE_OF_ONE_SPEAKER = 3.0  # where nothing can be held out
ABSENT = -30.0  # logit of a class that training did not have


@dataclass
class Discriminant:
    """Logits x·W' + b of features (n, p); `ridge` is the r that was chosen."""

    weight: Tensor  # (C, p)
    bias: Tensor  # (C,)
    ridge: float

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias


def fit_discriminant(
    features: np.ndarray, labels: Tensor, sample_weights: Tensor, n_classes: int, folds: list
) -> Discriminant:
    """Features (N, p) of about unit variance, labels (N,) ids.

    `folds`: pairs of rows to fit and to test on, by which r is chosen (recall averaged over classes) and the logits are
    scaled to what they are worth on recordings held out (log-likelihood).
    """
    features, weights = torch.from_numpy(features), sample_weights.double()

    def fitted(rows, ridges):
        return discriminants(features[rows], labels[rows], weights[rows], n_classes, ridges)

    from sklearn.metrics import recall_score

    if not folds:
        return fitted(slice(None), (RIDGE_OF_ONE_SPEAKER,))[0]
    recalls, held_out = np.zeros(len(RIDGES)), []
    for train, test in folds:
        logits = [one.logits(features[test]) for one in fitted(train, RIDGES)]
        there = labels[test].unique()
        recalls += [recall_score(labels[test], one.argmax(1), labels=there, average="macro") for one in logits]
        held_out.append((logits, labels[test], weights[test]))
    best = int(recalls.argmax())
    found = fitted(slice(None), (RIDGES[best],))[0]
    scale = best_scale(*(torch.cat(part) for part in zip(*((one[0][best], *one[1:]) for one in held_out), strict=True)))
    return Discriminant(found.weight * scale, found.bias * scale, found.ridge)


def discriminants(features: Tensor, labels: Tensor, weights: Tensor, n_classes: int, ridges) -> list[Discriminant]:
    """One for each ridge, from the same covariance."""
    shares = torch.zeros(n_classes, dtype=features.dtype).index_add_(0, labels, weights)
    means = torch.zeros(n_classes, features.shape[1], dtype=features.dtype)
    means.index_add_(0, labels, features * weights[:, None])
    means /= shares.clamp_min(1e-12)[:, None]
    around = (features - means[labels]) * (weights / weights.sum()).sqrt()[:, None]
    solve = ridge_solver(around)
    return [_discriminant(means, solve(means.T, ridge).T, shares == 0, ridge) for ridge in ridges]


def ridge_solver(rows: Tensor):
    """Solves (R'R + r·I) x = y for rows R (n, p), in whichever of both sizes is smaller."""
    n, p = rows.shape
    product = rows.T @ rows if p <= n else rows @ rows.T

    def solved(right: Tensor, ridge: float) -> Tensor:
        factor = torch.linalg.cholesky(product + ridge * torch.eye(len(product), dtype=product.dtype))
        if p <= n:
            return torch.cholesky_solve(right, factor)
        return (right - rows.T @ torch.cholesky_solve(rows @ right, factor)) / ridge  # Woodbury's identity

    return solved


def _discriminant(means: Tensor, weight: Tensor, absent: Tensor, ridge: float) -> Discriminant:
    bias = -(means * weight).sum(1) / 2
    # The same for all classes changes no probability.
    weight, bias = weight - weight[~absent].mean(0), bias - bias[~absent].mean()
    weight[absent], bias[absent] = 0.0, ABSENT
    return Discriminant(weight, bias, ridge)


def best_scale(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """The factor of the logits under which the labels are most likely."""
    from scipy.optimize import minimize_scalar

    def loss(log_scale: float) -> float:
        return float(
            (torch.nn.functional.cross_entropy(np.exp(log_scale) * logits, labels, reduction="none") * weights).sum()
        )

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))
