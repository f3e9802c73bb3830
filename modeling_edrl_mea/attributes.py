"""Attributes: ratings of a voice on a scale, such as arousal and valence. Their scales and loss.

Within the model a rating lies between -1 and 1, the ends of its scale (the config's `attribute_ranges`); what users
give or get is on the scale itself. A rating that is missing is NaN, and left out of every loss.
"""

import torch
from torch import Tensor


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
