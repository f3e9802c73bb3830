"""Linear heads: logistic regression for emotions, ridge regression for ratings. What regularizes them, and how far
their outputs are stretched, is chosen on speakers held out. For emotions see also `discriminant`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .embeddings import ROWS
from .targets import attribute_loss

# For features of unit variance, and where nothing can be held out.
INVERSE_REGULARIZATION, OF_ONE_SPEAKER = [0.0001, 0.001, 0.01, 0.1], 0.1  # C of the logistic regression
RATING_RIDGES, RATING_RIDGE_OF_ONE_SPEAKER = (0.001, 0.01, 0.1, 1.0, 10.0), 0.1
N_FOLDS = 4
ABSENT = -30.0  # logit of a class that training did not have


@dataclass
class LinearHead:
    """Outputs x·W' + b of features (n, p)."""

    weight: Tensor  # (C, p)
    bias: Tensor  # (C,)
    regularization: float  # that was chosen

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias


def speaker_folds(labels, speakers) -> list:
    """Pairs of rows to fit and to test on that share no speaker, classes spread evenly; none of one speaker."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.unique(speakers, return_inverse=True)[1]
    n_folds = min(N_FOLDS, len(set(groups)))
    if n_folds < 2:
        return []
    return list(StratifiedGroupKFold(n_folds, shuffle=True, random_state=0).split(labels, labels, groups))


def corpus_folds(corpora: Sequence[str]) -> list:
    """Each corpus in turn held out, where there are three or more."""
    names = np.array(corpora)
    if len(set(corpora)) < 3:
        return []
    return [(np.flatnonzero(names != name), np.flatnonzero(names == name)) for name in dict.fromkeys(corpora)]


def whole(features) -> Tensor:
    """Features (N, p) whose `split(n)` gives n rows at a time, all at once in float64."""
    rows = torch.empty(tuple(features.shape), dtype=torch.float64)
    for kept, part in zip(rows.split(ROWS), features.split(ROWS), strict=True):
        kept.copy_(part)
    return rows


# --- logistic regression ---


def fit_regression(
    features: Tensor, labels: Tensor, sample_weights: Tensor, speakers: Sequence[str], n_classes: int
) -> LinearHead:
    """scikit-learn's `LogisticRegression`, its C chosen by folds of speakers where there are several."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    features, labels, weights = (part.numpy() for part in (features, labels, sample_weights))
    regression, folds = LogisticRegression(C=OF_ONE_SPEAKER, max_iter=5000), speaker_folds(labels, speakers)
    if folds:
        search = GridSearchCV(regression, {"C": INVERSE_REGULARIZATION}, scoring="balanced_accuracy", cv=folds)
        regression = search.fit(features, labels, sample_weight=weights).best_estimator_
    else:
        regression.fit(features, labels, sample_weight=weights)
    weight, bias = map(torch.from_numpy, (regression.coef_, regression.intercept_))
    if len(weight) == 1:  # scikit-learn keeps one row for two classes
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    head = LinearHead(weight.new_zeros(n_classes, weight.shape[1]), bias.new_full((n_classes,), ABSENT), regression.C)
    head.weight[regression.classes_], head.bias[regression.classes_] = weight, bias
    return head


# --- ratings ---


def fit_ratings(features: Tensor, ratings: Tensor, speakers: Sequence[str], kind: str) -> LinearHead:
    """Ridge regression of ratings (N, A), NaN where missing, on features (N, p) of about unit variance; its
    `regularization` is the first attribute's.

    The ridge is the best one on speakers held out. For "ccc" predictions are then spread as far as ratings are, by what
    speakers held out show: least squares draws them to the mean, which a correlation does not see and concordance does.
    """
    groups, found = np.unique(speakers, return_inverse=True)[1], []
    for values in ratings.double().unbind(1):
        rated = values.isfinite()
        found.append(_fit_one(features[rated], values[rated], groups[rated.numpy()], kind))
    weights, biases, ridges = zip(*found, strict=True)
    return LinearHead(torch.stack(weights), torch.stack(biases), ridges[0])


def _fit_one(features: Tensor, values: Tensor, groups: np.ndarray, kind: str) -> tuple[Tensor, Tensor, float]:
    if len(values) < 2:  # the middle of the scale, or the one rating
        return features.new_zeros(features.shape[1]), values.sum(), RATING_RIDGE_OF_ONE_SPEAKER
    ridge, stretch = _chosen(features, values, groups, kind)
    (weight,), mean, center = _ridges(features, values, [ridge])
    weight = stretch * weight
    return weight, mean - center @ weight, ridge


def _chosen(features: Tensor, values: Tensor, groups: np.ndarray, kind: str) -> tuple[float, float]:
    """(ridge, factor of the predictions around their mean) by speakers held out in turn."""
    from sklearn.model_selection import GroupKFold

    n_folds = min(N_FOLDS, len(set(groups.tolist())))
    if n_folds < 2:
        return RATING_RIDGE_OF_ONE_SPEAKER, 1.0
    held_out = torch.zeros(len(RATING_RIDGES), len(values), dtype=values.dtype)
    for seen, unseen in GroupKFold(n_folds).split(groups, groups=groups):
        weights, mean, center = _ridges(features[seen], values[seen], RATING_RIDGES)
        held_out[:, unseen] = mean + weights @ (features[unseen] - center).T
    stretches = [_stretch(predicted, values) if kind == "ccc" else 1.0 for predicted in held_out]
    means = held_out.mean(1, keepdim=True)
    stretched = means + torch.tensor(stretches, dtype=values.dtype)[:, None] * (held_out - means)
    losses = [float(attribute_loss(one[:, None], values[:, None], None, kind)) for one in stretched]
    best = int(np.argmin(losses))
    return RATING_RIDGES[best], stretches[best]


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
