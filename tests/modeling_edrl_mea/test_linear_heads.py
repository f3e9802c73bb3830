"""Linear heads in closed form."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict

from modeling_edrl_mea import linear_heads
from modeling_edrl_mea.linear_heads import RATING_RIDGES, fit_ratings


class Streamed:
    """Features that are given some rows at a time, and only so."""

    def __init__(self, features):
        self.features, self.shape = features, features.shape

    def split(self, n):
        return iter(self.features.split(n))


def chosen_by_scikit_learn(features: np.ndarray, values: np.ndarray, groups: np.ndarray):
    """Ridge regression of the least squared error on speakers held out; a ridge is of the mean over recordings."""

    def error(ridge: float) -> float:
        regression, folds = Ridge(alpha=ridge * 0.75 * len(values)), GroupKFold(4)
        return np.square(cross_val_predict(regression, features, values, groups=groups, cv=folds) - values).mean()

    best = min(RATING_RIDGES, key=error)
    return best, Ridge(alpha=best * len(values)).fit(features, values)


@pytest.mark.parametrize("n_columns", [6, 300], ids=["few", "more than rows"])
def test_ratings_of_streamed_rows_are_regressed_as_all_rows_are(n_columns, monkeypatch):
    monkeypatch.setattr(linear_heads, "ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, n_columns, generator=generator, dtype=torch.float64) + 3.0
    ratings = features[:, :2] + torch.randn(200, 2, generator=generator, dtype=torch.float64)
    ratings[:40, 1] = torch.nan  # two of the speakers, so that folds are of one size
    groups = np.arange(200) // 20
    found = fit_ratings(Streamed(features), ratings, [str(group) for group in groups], "mse")
    for column, rated in enumerate([slice(None), slice(40, None)]):
        parts = (part[rated] for part in (features.numpy(), ratings[:, column].numpy(), groups))
        best, expected = chosen_by_scikit_learn(*parts)
        np.testing.assert_allclose(found.weight[column], expected.coef_, atol=1e-8)
        assert float(found.bias[column]) == pytest.approx(expected.intercept_, abs=1e-8)
        assert column or found.regularization == best


def test_attributes_with_one_rating_or_none_are_what_is_known_of_them():
    features, ratings = torch.randn(9, 3), torch.full((9, 3), torch.nan)
    ratings[4, 1], ratings[[0, 8], 2] = 0.5, torch.tensor([0.1, 0.3])
    found = fit_ratings(features, ratings, list("aaabbbccc"), "ccc")
    assert (found.weight[:2] == 0).all() and found.bias[:2].tolist() == [0.0, 0.5]
    assert found.weight[2].isfinite().all() and found.weight[2].any()


def test_each_of_three_corpora_is_held_out_once():
    folds = linear_heads.corpus_folds(["a", "b", "a", "c"])
    assert [list(test) for _, test in folds] == [[0, 2], [1], [3]]
    assert linear_heads.corpus_folds(["a", "b"]) == []
