"""Ratings of attributes in closed form: ridge regression, its strength and spread by speakers held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .attributes import attribute_loss
from .discriminant import ridge_solver

RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0)  # for features of unit variance
RIDGE_OF_ONE_SPEAKER = 0.1  # where nothing can be held out
N_FOLDS = 4


@dataclass
class RatingRegression:
    """Ratings x·W' + b of features (n, p); `ridge` is the one chosen for the first attribute."""

    weight: Tensor  # (A, p)
    bias: Tensor  # (A,)
    ridge: float


def fit_ratings(features: np.ndarray, ratings: Tensor, speakers: Sequence[str], kind: str) -> RatingRegression:
    """Ridge regression of ratings (N, A), NaN where missing, on features (N, p) of about unit variance.

    The ridge is the best one on speakers held out. For "ccc" predictions are then spread as far as ratings are, by what
    speakers held out show: least squares draws them to the mean, which a correlation does not see and concordance does.
    """
    rows, groups = torch.from_numpy(features), np.unique(speakers, return_inverse=True)[1]
    found = []
    for values in ratings.double().unbind(1):
        rated = values.isfinite()
        found.append(_fit_one(rows[rated], values[rated], groups[rated.numpy()], kind))
    weights, biases, ridges = zip(*found, strict=True)
    return RatingRegression(torch.stack(weights), torch.stack(biases), ridges[0])


def _fit_one(features: Tensor, values: Tensor, groups: np.ndarray, kind: str) -> tuple[Tensor, Tensor, float]:
    if len(values) < 2:  # the middle of the scale, or the one rating
        return features.new_zeros(features.shape[1]), values.sum(), RIDGE_OF_ONE_SPEAKER
    ridge, stretch = _chosen(features, values, groups, kind)
    (weight,), mean, center = _ridges(features, values, [ridge])
    weight = stretch * weight
    return weight, mean - center @ weight, ridge


def _chosen(features: Tensor, values: Tensor, groups: np.ndarray, kind: str) -> tuple[float, float]:
    """(ridge, factor of the predictions around their mean) by speakers held out in turn."""
    from sklearn.model_selection import GroupKFold

    n_folds = min(N_FOLDS, len(set(groups.tolist())))
    if n_folds < 2:
        return RIDGE_OF_ONE_SPEAKER, 1.0
    held_out = torch.zeros(len(RIDGES), len(values), dtype=values.dtype)
    for seen, unseen in GroupKFold(n_folds).split(groups, groups=groups):
        weights, mean, center = _ridges(features[seen], values[seen], RIDGES)
        held_out[:, unseen] = mean + weights @ (features[unseen] - center).T
    stretches = [_stretch(predicted, values) if kind == "ccc" else 1.0 for predicted in held_out]
    means = held_out.mean(1, keepdim=True)
    stretched = means + torch.tensor(stretches, dtype=values.dtype)[:, None] * (held_out - means)
    losses = [float(attribute_loss(one[:, None], values[:, None], None, kind)) for one in stretched]
    best = int(np.argmin(losses))
    return RIDGES[best], stretches[best]


def _stretch(predicted: Tensor, values: Tensor) -> float:
    """By which predictions vary as much as the values; 1 where they do not go with them at all."""
    around = predicted - predicted.mean()
    if float(around @ values) <= 0:
        return 1.0
    return float(values.std() / around.std())


def _ridges(features: Tensor, values: Tensor, ridges: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """(weights (ridges, p), mean of the values, mean of the features)."""
    mean, center = values.mean(), features.mean(0)
    rows = (features - center) / len(values) ** 0.5
    solve, right = ridge_solver(rows), rows.T @ ((values - mean) / len(values) ** 0.5)[:, None]
    return torch.stack([solve(right, ridge)[:, 0] for ridge in ridges]), mean, center
