"""Linear heads: logistic regression for emotions, ridge regression for ratings. What regularizes them, and how far
their outputs are stretched, is chosen on speakers held out. For emotions see also `discriminant`."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


def parts(features) -> Iterator[tuple[slice, Tensor]]:
    """Of features (N, p) whose `split(n)` gives n rows at a time: which ones, and they in float64."""
    start = 0
    for part in features.split(ROWS):
        yield slice(start, start + len(part)), part.double()
        start += len(part)


def whole(features) -> Tensor:
    """All of them at once."""
    found = torch.empty(tuple(features.shape), dtype=torch.float64)
    for rows, part in parts(features):
        found[rows] = part
    return found


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


def in_span_of_rows(features, fit: Callable[[Tensor], LinearHead]) -> LinearHead:
    """What `fit` makes of fewer rows than columns: all that matters lies in their span, and p x p numbers would be more
    than they are."""
    rows = whole(features)
    basis = torch.linalg.qr(rows.T).Q
    head = fit(rows @ basis)
    return LinearHead(head.weight @ basis.T, head.bias, head.regularization)


# --- ratings ---


def fit_ratings(features, ratings: Tensor, speakers: Sequence[str], kind: str) -> LinearHead:
    """Ridge regression of ratings (N, A), NaN where missing, on features of about unit variance; its `regularization`
    is the first attribute's.

    `features`: (N, p), as [`fit_discriminant`] takes them: from sums over rows that are gone through twice.

    The ridge is the best one on speakers held out. For "ccc" predictions are then spread as far as ratings are, by what
    speakers held out show: least squares draws them to the mean, which a correlation does not see and concordance does.
    """
    n, p = features.shape
    if p > n:
        return in_span_of_rows(features, lambda rows: fit_ratings(rows, ratings, speakers, kind))
    groups, ratings = np.unique(speakers, return_inverse=True)[1], ratings.double()
    data = _Ratings(features, ratings, torch.stack([_folds(values, groups) for values in ratings.T], 1))
    sums = data.sums()
    held_out, found = data.held_out(sums), []
    for values, of_folds, predicted in zip(ratings.T, sums, held_out, strict=True):
        rated = values.isfinite()
        found.append(_fit_one(of_folds, predicted[:, rated], values[rated], kind))
    weights, biases, ridges = zip(*found, strict=True)
    return LinearHead(torch.stack(weights), torch.stack(biases), ridges[0])


def _folds(values: Tensor, groups: np.ndarray) -> Tensor:
    """(N,) in which fold a rating is held out, all of a speaker's in one; 0 where there is one speaker, -1 without a
    rating."""
    from sklearn.model_selection import GroupKFold

    (rated,) = values.isfinite().nonzero(as_tuple=True)
    folds, groups = torch.full((len(values),), -1), groups[rated.numpy()]
    n_folds = min(N_FOLDS, len(set(groups.tolist())))
    splits = GroupKFold(n_folds).split(groups, groups=groups) if n_folds > 1 else [(None, np.arange(len(rated)))]
    for number, (_, unseen) in enumerate(splits):
        folds[rated[unseen]] = number
    return folds


class _Ratings(NamedTuple):
    features: Any  # (N, p)
    values: Tensor  # (N, A)
    folds: Tensor  # (N, A)

    def parts(self) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Some rows at a time, for each attribute and fold: its rows, and their [features, 1] (n, p + 1)."""
        for rows, part in parts(self.features):
            known = torch.cat([part, part.new_ones(len(part), 1)], 1)
            for attribute, fold in itertools.product(range(self.values.shape[1]), range(N_FOLDS)):
                (here,) = (self.folds[rows, attribute] == fold).nonzero(as_tuple=True)
                yield attribute, fold, rows.start + here, known[here]

    def sums(self) -> Tensor:
        """(A, folds, p + 1, p + 2) products [x, 1]'[x, 1, y] over the ratings of each fold."""
        p = self.features.shape[1]
        sums = torch.zeros(self.values.shape[1], N_FOLDS, p + 1, p + 2, dtype=torch.float64)
        for attribute, fold, rows, x in self.parts():
            sums[attribute, fold].addmm_(x.T, torch.cat([x, self.values[rows, attribute, None]], 1))
        return sums

    def held_out(self, sums: Tensor) -> Tensor:
        """(A, ridges, N) predictions of ratings by all folds but their own; 0 where there are no others."""
        heads = [[_ridges(of_folds.sum(0) - one, RATING_RIDGES) for one in of_folds] for of_folds in sums]
        found = torch.zeros(len(sums), len(RATING_RIDGES), len(self.values), dtype=torch.float64)
        for attribute, fold, rows, x in self.parts():
            found[attribute][:, rows] = heads[attribute][fold] @ x.T
        return found


def _fit_one(of_folds: Tensor, predicted: Tensor, values: Tensor, kind: str) -> tuple[Tensor, Tensor, float]:
    """An attribute's weights (p,), bias and ridge, by sums of its folds and what these predict (ridges, n) of its
    ratings (n,)."""
    ridge, stretch = RATING_RIDGE_OF_ONE_SPEAKER, 1.0
    if (of_folds[:, -1, -2] > 0).sum() > 1:
        ridge, stretch = _chosen(predicted, values, kind)
    (head,) = _ridges(of_folds.sum(0), [ridge])
    weight, center = head[:-1], of_folds[:, -1, :-2].sum(0) / max(len(values), 1)
    return stretch * weight, head[-1] + (1 - stretch) * (center @ weight), ridge


def _chosen(held_out: Tensor, values: Tensor, kind: str) -> tuple[float, float]:
    """(ridge, factor of the predictions around their mean) by speakers held out in turn."""
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


def _ridges(sums: Tensor, ridges: Sequence[float]) -> Tensor:
    """(ridges, p + 1) weights and bias by sums (p + 1, p + 2) over ratings; their mean alone of fewer than two."""
    means = sums[-1] / sums[-1, -2].clamp_min(1)
    center, mean = means[:-2], means[-1]
    if sums[-1, -2] < 2:
        return torch.cat([torch.zeros_like(center), mean[None]]).expand(len(ridges), -1)
    covariances = sums[:-1] / sums[-1, -2] - torch.outer(center, means)
    products, right, unit = covariances[:, :-2], covariances[:, -1:], torch.eye(len(center), dtype=sums.dtype)
    weights = [torch.cholesky_solve(right, torch.linalg.cholesky(products + ridge * unit))[:, 0] for ridge in ridges]
    return torch.stack([torch.cat([weight, (mean - center @ weight)[None]]) for weight in weights])
