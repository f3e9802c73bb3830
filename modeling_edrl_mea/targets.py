"""What is learned of a recording, as users give it, brought to one form in one place: labels of emotions and ratings.

Within the model a rating lies between -1 and 1, the ends of its scale (the config's `attribute_ranges`); what users
give or get is on the scale itself. A rating that is missing is NaN, and left out of every loss.
"""

import torch
from torch import Tensor

IGNORED = -100  # torch's and transformers' id for a recording that no loss counts


def as_targets(labels: Tensor, n_classes: int, sample_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(targets (B, C), weights (B,)): each recording's share of every class, and how much it counts in a mean.

    Args:
        labels: ids (B,) or (B, 1) of any integer type, -100 for a recording that has none; or rows (B, C) that add up
            to 1, one-hot or soft.
        sample_weights: (B,), ones by default. A recording without a label gets a row of zeros and the weight 0, and
            the others weigh so much more that a mean over the batch is one over them.

    Raises:
        ValueError: an id outside 0 … C-1, rows that are no shares of classes, or another shape.
    """
    labels = torch.as_tensor(labels)
    targets = _rows(labels, n_classes) if _are_rows(labels, n_classes) else _one_hot(_ids(labels), n_classes)
    has_label = targets.sum(1) > 0
    weights = targets.new_ones(len(targets)) if sample_weights is None else sample_weights.to(targets)
    scale = len(targets) / has_label.sum().clamp_min(1)
    return targets, weights * has_label * scale


def as_ids(labels: Tensor, n_classes: int) -> Tensor:
    """Ids (B,) int64 of the same labels, -100 where there is none; of soft labels the largest share."""
    targets, _ = as_targets(labels, n_classes)
    return torch.where(targets.sum(1) > 0, targets.argmax(1), IGNORED)


def _are_rows(labels: Tensor, n_classes: int) -> bool:
    if labels.dim() == 1 or labels.shape[1:] == (1,):
        return False
    if labels.dim() != 2 or labels.shape[1] != n_classes:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)}: give ids (B,) or (B, 1), or rows (B, {n_classes}) of shares "
            "of the classes."
        )
    return True


def _rows(labels: Tensor, n_classes: int) -> Tensor:
    targets = labels.float()
    ignored = (labels == IGNORED).all(1, keepdim=True)
    targets = targets.masked_fill(ignored, 0)
    sums = targets.sum(1)
    if bool((targets < 0).any() | ((sums - 1).abs() > 0.01)[~ignored[:, 0]].any()):
        raise ValueError(
            f"labels: every row must hold the shares of {n_classes} classes and add up to 1. Several emotions at once "
            "(multi-label) are not supported; divide each row by its sum to give them shares."
        )
    return targets


def _ids(labels: Tensor) -> Tensor:
    labels = labels.flatten()
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        raise ValueError(
            "labels: class ids must be whole numbers. Ratings are `attributes`, or the labels of a model with "
            'problem_type="regression".'
        )
    return labels.long()


def _one_hot(ids: Tensor, n_classes: int) -> Tensor:
    strange = (ids != IGNORED) & ((ids < 0) | (ids >= n_classes))
    if bool(strange.any()):
        raise ValueError(
            f"labels: id {int(ids[strange][0])} is none of the model's {n_classes} classes, 0 to {n_classes - 1} "
            "(-100: no label)."
        )
    targets = torch.zeros(len(ids), n_classes, device=ids.device)
    return targets.scatter(1, ids.clamp_min(0)[:, None], (ids != IGNORED).float()[:, None])


# --- ratings ---


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
