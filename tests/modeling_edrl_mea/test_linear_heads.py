"""Linear heads in closed form."""

import pytest
import torch

from modeling_edrl_mea import linear_heads
from modeling_edrl_mea.linear_heads import ridge_solver


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)], ids=["fewer rows", "more rows"])
def test_both_sizes_of_the_system_have_the_same_solution(shape):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(shape, generator=generator, dtype=torch.float64)
    right = torch.randn(shape[1], 3, generator=generator, dtype=torch.float64)
    found = ridge_solver(rows)(right, 0.5)
    assert torch.allclose((rows.T @ rows + 0.5 * torch.eye(shape[1])) @ found, right, atol=1e-10)


def test_each_of_three_corpora_is_held_out_once():
    folds = linear_heads.corpus_folds(["a", "b", "a", "c"])
    assert [list(test) for _, test in folds] == [[0, 2], [1], [3]]
    assert linear_heads.corpus_folds(["a", "b"]) == []
