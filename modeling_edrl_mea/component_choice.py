"""How many components: folds that keep groups whole, and the one-standard-error rule."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def assign_folds(groups: Sequence[Hashable], n_folds: int = 5) -> Tensor:
    """Spread groups over folds of about equal numbers of rows, none in two folds.

    Args:
        groups: (n,) group of each row, a speaker say.
        n_folds: folds wanted; there are never more than groups.

    Returns:
        (n,) fold of each row.

    Raises:
        ValueError: fewer than two groups.
    """
    groups = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    counts: dict[Hashable, int] = {}
    for group in groups:
        counts[group] = counts.get(group, 0) + 1
    if len(counts) < 2:
        raise ValueError(
            "Grouped cross-validation needs at least two groups (speakers): give more, or a fixed number of components."
        )
    rows_in = [0] * min(n_folds, len(counts))
    fold_of = {}
    for group in sorted(counts, key=lambda group: (-counts[group], str(group))):
        fold_of[group] = rows_in.index(min(rows_in))
        rows_in[fold_of[group]] += counts[group]
    return torch.tensor([fold_of[group] for group in groups])


def one_standard_error_choice(errors: Tensor) -> int:
    """Fewest components (at least 1) whose mean error over folds is within one standard error of the best.

    Args:
        errors: (folds, k + 1) errors with 0, 1, ... k components.
    """
    errors = errors[:, 1:]
    mean = errors.mean(0)
    best = int(mean.argmin())
    standard_error = errors[:, best].std() / len(errors) ** 0.5
    return 1 + int((mean <= mean[best] + standard_error).nonzero()[0])
