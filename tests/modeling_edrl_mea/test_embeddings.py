"""Embedded recordings: copies keep their originals, and rare classes and small corpora their weight."""

import pytest
import torch

from modeling_edrl_mea.embeddings import Embeddings


def test_copies_stay_linked_to_their_clean_originals():
    data = Embeddings(torch.randn(8, 3, 4), torch.arange(8) % 4, [""] * 8, torch.arange(8))
    both = data.with_copies([data.layer_statistics + 1])
    assert torch.equal(both.layer_statistics[both.clean_rows], data.layer_statistics.repeat(2, 1, 1))


def test_classes_count_the_same_however_rare():
    labels = torch.tensor([0] * 9 + [1])
    weights = Embeddings(torch.zeros(10, 1, 1), labels, [""] * 10, torch.arange(10)).sample_weights
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum().item())
    assert weights.mean() == pytest.approx(1)


def test_corpora_count_the_same_in_each_class_that_they_have():
    labels = torch.tensor([0] * 6 + [1] * 4)
    corpora = ["large"] * 5 + ["small"] + ["large"] * 4
    weights = Embeddings(torch.zeros(10, 1, 1), labels, [""] * 10, torch.arange(10), corpora).sample_weights
    assert weights[:5].sum() == pytest.approx(weights[5].item())
    assert weights[:6].sum() == pytest.approx(weights[6:].sum().item()) and weights.mean() == pytest.approx(1)
