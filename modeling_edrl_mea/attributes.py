"""Attributes: ratings of a voice on a scale, such as arousal and valence. Their scales, loss and closed form.

Within the model a rating lies between -1 and 1, the ends of its scale (the config's `attribute_ranges`); what users
give or get is on the scale itself. A rating that is missing is NaN, and left out of every loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .discriminant import ridge_solver

RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0)  # for features of unit variance
RIDGE_OF_ONE_SPEAKER = 0.1  # where nothing can be held out
N_FOLDS = 4


def split_targets(config, labels: Tensor | None, attributes: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(labels of emotions, ratings (B, A) between -1 and 1), None where there are none. With
    `problem_type="regression"` the labels are the ratings.

    Raises ValueError for ratings of another shape, or infinite ones.
    """
    if config.is_regression:
        labels, attributes = None, labels if attributes is None else attributes
    if attributes is None:
        return labels, None
    attributes = torch.as_tensor(attributes)
    shape = (len(attributes), config.n_attributes)
    if attributes.shape != shape:
        raise ValueError(
            f"attributes of shape {tuple(attributes.shape)}: give (B, {config.n_attributes}) numbers, the ratings of "
            f"{config.attribute_names}; NaN where one is missing."
        )
    if bool(attributes.isinf().any()):
        raise ValueError("attributes: a rating is infinite. Give NaN for one that is missing.")
    return labels, to_unit(attributes.float(), config)


def to_unit(ratings: Tensor, config) -> Tensor:
    """(…, A) on the scales of the config → between -1 and 1, at the ends of the scale."""
    middle, half = _scale(config, ratings)
    return (ratings - middle) / half


def on_scale(unit: Tensor, config) -> Tensor:
    """What [`to_unit`] gives, back on the scales of the config, in float32."""
    unit = unit.float()
    middle, half = _scale(config, unit)
    return middle + half * unit


def _scale(config, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = like.new_tensor(list(config.attribute_scales.values())).unbind(1)
    return (low + high) / 2, (high - low) / 2


def attribute_loss(predicted: Tensor, ratings: Tensor, weights: Tensor | None, kind: str) -> Tensor:
    """Mean over the attributes that are rated in a batch.

    "ccc": 1 - CCC, the concordance correlation coefficient (Lin 1989), which equals the mean squared error over
    var(predicted) + var(ratings) + (difference of the means)². "mse": the mean squared error; so also "ccc" where an
    attribute has one rating, of which there is no correlation.

    Args:
        predicted, ratings: (B, A); NaN for a rating that is missing.
        weights: (B,) of the recordings; None: all the same.
    """
    there = ratings.isfinite()
    if weights is not None:
        there = there & (weights > 0)[:, None]
    weights, n_ratings = there * (1 if weights is None else weights[:, None]), there.sum(0)
    predicted, ratings = predicted.float(), ratings.float().where(there, 0)

    def mean(values: Tensor) -> Tensor:
        return (values * weights).sum(0) / weights.sum(0).clamp_min(1e-12)

    errors = mean((predicted - ratings).square())
    if kind == "ccc":
        means = mean(predicted), mean(ratings)
        spread = mean((predicted - means[0]).square()) + mean((ratings - means[1]).square())
        most = spread + (means[0] - means[1]).square()
        errors = torch.where(n_ratings > 1, errors / most.clamp_min(1e-12), errors)
    is_rated = n_ratings > 0
    return (errors * is_rated).sum() / is_rated.sum().clamp_min(1)


# --- closed form ---


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
