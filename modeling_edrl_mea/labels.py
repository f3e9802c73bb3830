"""Labels as users give them, brought to one form in one place: for the loss in training, in evaluation, and for what is
fitted in closed form."""

import torch

IGNORED = -100  # torch's and transformers' id for a recording that no loss counts


def as_targets(
    labels: torch.Tensor, n_classes: int, sample_weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
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


def as_ids(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Ids (B,) int64 of the same labels, -100 where there is none; of soft labels the largest share."""
    targets, _ = as_targets(labels, n_classes)
    return torch.where(targets.sum(1) > 0, targets.argmax(1), IGNORED)


def _are_rows(labels: torch.Tensor, n_classes: int) -> bool:
    if labels.dim() == 1 or labels.shape[1:] == (1,):
        return False
    if labels.dim() != 2 or labels.shape[1] != n_classes:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)}: give ids (B,) or (B, 1), or rows (B, {n_classes}) of shares "
            "of the classes."
        )
    return True


def _rows(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
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


def _ids(labels: torch.Tensor) -> torch.Tensor:
    labels = labels.flatten()
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        raise ValueError(
            "labels: class ids must be whole numbers. Ratings are `attributes`, or the labels of a model with "
            'problem_type="regression".'
        )
    return labels.long()


def _one_hot(ids: torch.Tensor, n_classes: int) -> torch.Tensor:
    strange = (ids != IGNORED) & ((ids < 0) | (ids >= n_classes))
    if bool(strange.any()):
        raise ValueError(
            f"labels: id {int(ids[strange][0])} is none of the model's {n_classes} classes, 0 to {n_classes - 1} "
            "(-100: no label)."
        )
    targets = torch.zeros(len(ids), n_classes, device=ids.device)
    return targets.scatter(1, ids.clamp_min(0)[:, None], (ids != IGNORED).float()[:, None])
