"""Linear heads in closed form."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from modeling_edrl_mea import closed_form, linear_heads
from modeling_edrl_mea.linear_heads import (
    ABSENT,
    DISCRIMINANT_RIDGES,
    best_scale,
    discriminants,
    fit_discriminant,
    ridge_solver,
)
from tests.modeling_edrl_mea.test_closed_form import embeddings


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    centers = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    return centers[labels] + torch.randn(120, 6, generator=generator, dtype=torch.float64), labels


def test_it_is_scikit_learns_where_recordings_count_alike(data):
    features, labels = data
    shrinkage = 0.3
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[1 / 3] * 3)
    theirs.fit(features.numpy(), labels.numpy())
    typical = float(np.trace(theirs.covariance_ - 0) / 6)  # shrinking keeps the trace
    (ours,) = discriminants(features, labels, torch.ones(120).double(), 3, [shrinkage / (1 - shrinkage) * typical])
    expected = theirs.decision_function(features.numpy()) * (1 - shrinkage)
    found = ours.logits(features).numpy()
    differences = [logits - logits.mean(1, keepdims=True) for logits in (found, expected)]
    np.testing.assert_allclose(*differences, atol=1e-8)


def test_a_weight_of_two_is_a_recording_twice(data):
    features, labels = data
    weights = torch.ones(120).double()
    weights[:30] = 2
    (weighted,) = discriminants(features, labels, weights, 3, [1.0])
    twice = torch.cat([torch.arange(120), torch.arange(30)])
    (repeated,) = discriminants(features[twice], labels[twice], torch.ones(150).double(), 3, [1.0])
    assert torch.allclose(weighted.weight, repeated.weight, atol=1e-10)


def test_what_differs_between_corpora_counts_less(data):
    features, labels = data
    corpus = torch.arange(120) // 60
    shifted = features.clone()
    shifted[:, 0] += 8.0 * corpus
    plain, other = (discriminants(x, labels, torch.ones(120).double(), 3, [1.0])[0] for x in (features, shifted))
    assert other.weight[:, 0].abs().max() < 0.5 * plain.weight[:, 0].abs().max()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)], ids=["fewer rows", "more rows"])
def test_both_sizes_of_the_system_have_the_same_solution(shape):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(shape, generator=generator, dtype=torch.float64)
    right = torch.randn(shape[1], 3, generator=generator, dtype=torch.float64)
    found = ridge_solver(rows)(right, 0.5)
    assert torch.allclose((rows.T @ rows + 0.5 * torch.eye(shape[1])) @ found, right, atol=1e-10)


def test_held_out_recordings_choose_the_ridge_and_how_sure_it_is(data):
    features, labels = data
    rows = np.arange(120)
    folds = [(rows[rows % 4 != k], rows[rows % 4 == k]) for k in range(4)]
    found = fit_discriminant(features.numpy(), labels, torch.ones(120), 3, folds)
    held_out = torch.zeros(120, 3, dtype=torch.float64)
    for train, test in folds:
        (one,) = discriminants(features[train], labels[train], torch.ones(90).double(), 3, [found.regularization])
        held_out[test] = one.logits(features[test])
    scale = best_scale(held_out, labels, torch.ones(120))
    (plain,) = discriminants(features, labels, torch.ones(120).double(), 3, [found.regularization])
    assert torch.allclose(found.weight, plain.weight * scale)
    losses = [
        torch.nn.functional.cross_entropy(held_out * factor, labels) for factor in (scale, 0.8 * scale, 1.25 * scale)
    ]
    assert losses[0] == min(losses)


def test_a_class_that_training_lacks_is_never_predicted(data):
    features, labels = data
    found = fit_discriminant(features.numpy(), labels, torch.ones(120), 4, [])
    assert found.bias[3] == ABSENT and (found.logits(features).argmax(1) < 3).all()


def test_a_model_takes_it_in_place_of_the_regression(tiny_model):
    model = tiny_model("linear", classifier="discriminant", fitted=False)
    data = embeddings(model)
    chosen = closed_form.train_classifier(model, data)
    assert chosen in DISCRIMINANT_RIDGES
    features = torch.from_numpy(closed_form.classifier_features(model, data))
    found = fit_discriminant(
        features.numpy(),
        data.labels,
        data.sample_weights,
        4,
        linear_heads.speaker_folds(features, data.labels.numpy(), data.speakers),
    )
    assert torch.allclose(model.classifier.weight.double(), found.weight, atol=1e-5)


def test_each_of_three_corpora_is_held_out_once():
    folds = linear_heads.corpus_folds(["a", "b", "a", "c"])
    assert [list(test) for _, test in folds] == [[0, 2], [1], [3]]
    assert linear_heads.corpus_folds(["a", "b"]) == []
