"""The regularized discriminant, from sums over recordings."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from modeling_edrl_mea import closed_form, linear_heads
from modeling_edrl_mea.discriminant import DISCRIMINANT_RIDGES, ClassSums, best_scale, fit_discriminant
from modeling_edrl_mea.linear_heads import ABSENT, corpus_folds, speaker_folds, whole
from tests.modeling_edrl_mea.test_closed_form import embeddings
from tests.modeling_edrl_mea.test_linear_heads import Streamed


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    centers = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    return centers[labels] + torch.randn(120, 6, generator=generator, dtype=torch.float64), labels


def discriminants(features, labels, weights, n_classes, ridges):
    return ClassSums(n_classes, features.shape[1]).add(features, labels, weights).discriminants(ridges)


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


def test_held_out_recordings_choose_the_ridge_and_how_sure_it_is(data):
    features, labels = data
    rows = np.arange(120)
    folds = [(rows[rows % 4 != k], rows[rows % 4 == k]) for k in range(4)]
    found = fit_discriminant(features, labels, torch.ones(120), 3, folds)
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
    found = fit_discriminant(features, labels, torch.ones(120), 4, [])
    assert found.bias[3] == ABSENT and (found.logits(features).argmax(1) < 3).all()


def test_a_model_takes_it_in_place_of_the_regression(tiny_model):
    model = tiny_model("linear", classifier="discriminant", fitted=False)
    data = embeddings(model)
    chosen = closed_form.train_classifier(model, data)
    assert chosen in DISCRIMINANT_RIDGES
    features = whole(closed_form.ClassifierFeatures(model, data))
    found = fit_discriminant(
        features,
        data.labels,
        data.sample_weights,
        4,
        speaker_folds(data.labels.numpy(), data.speakers),
    )
    assert torch.allclose(model.classifier.weight.double(), found.weight, atol=1e-5)


def by_all_rows(features, labels, weights, n_classes, ridge):
    """Weights (C, p) and biases of a discriminant as its definition says, from all rows at once."""
    means = torch.stack(
        [
            (weights[labels == c, None] * features[labels == c]).sum(0) / weights[labels == c].sum()
            for c in range(n_classes)
        ]
    )
    around = (features - means[labels]) * (weights / weights.sum()).sqrt()[:, None]
    covariance = around.T @ around + ridge * torch.eye(features.shape[1], dtype=features.dtype)
    weight = torch.linalg.solve(covariance, means.T).T
    bias = -(weight * means).sum(1) / 2
    return weight - weight.mean(0), bias - bias.mean()


@pytest.mark.parametrize("n_columns", [6, 40, 300], ids=["few", "some: folds one by one", "more than rows"])
def test_sums_of_streamed_rows_give_what_all_rows_give(n_columns, monkeypatch):
    monkeypatch.setattr(linear_heads, "ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    labels, corpora = torch.arange(200) % 4, [str(i // 50) for i in range(200)]
    features = torch.randn(200, n_columns, generator=generator, dtype=torch.float64) + 3.0
    features[:, :4] += torch.eye(4, dtype=torch.float64)[labels]
    weights = 0.5 + torch.rand(200, generator=generator, dtype=torch.float64)
    folds = speaker_folds(labels.numpy(), [str(i // 10) for i in range(200)]) + corpus_folds(corpora)
    found = fit_discriminant(Streamed(features), labels, weights, 4, folds)

    def scale_and_recall(ridge):
        logits, recall = [], 0.0
        for train, test in folds:
            weight, bias = by_all_rows(features[train], labels[train], weights[train], 4, ridge)
            logits.append(features[test] @ weight.T + bias)
            right = logits[-1].argmax(1) == labels[test]
            recall += sum(float(right[labels[test] == c].double().mean()) for c in range(4))
        order = torch.cat([torch.from_numpy(test) for _, test in folds])
        return best_scale(torch.cat(logits), labels[order], weights[order]), recall

    tried = {ridge: scale_and_recall(ridge) for ridge in DISCRIMINANT_RIDGES}
    assert tried[found.regularization][1] == pytest.approx(max(recall for _, recall in tried.values()))
    weight, bias = by_all_rows(features, labels, weights, 4, found.regularization)
    scale = tried[found.regularization][0]
    assert torch.allclose(found.weight, scale * weight, atol=1e-6, rtol=1e-6)
    assert torch.allclose(found.bias, scale * bias, atol=1e-6, rtol=1e-6)


def test_a_fold_without_an_emotion_of_which_a_rounding_error_remains_never_predicts_it(data):
    features, labels = data
    weights = torch.rand(120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every, third = (
        ClassSums(3, 6).add(features[rows], labels[rows], weights[rows]) for rows in (labels > -1, labels == 2)
    )
    (found,) = (every - third).discriminants([1.0])
    assert found.bias[2] == ABSENT and not found.weight[2].any()
