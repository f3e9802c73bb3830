"""Biases of the classes: what they meet, and what they leave alone."""

import numpy as np
import pytest

from modeling_edrl_mea.correction import (
    RIDGE_SHARE,
    class_biases,
    expected_mix,
    own_discriminant,
    sharpness,
    softmax,
)
from tests.support.shifted_logits import EVEN, LABELS, shifted_logits, uar


@pytest.mark.parametrize("mix", [EVEN, np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.9, 0.05, 0.05, 0.0])])
def test_without_a_prior_the_answers_meet_the_expected_mix(mix):
    logits = shifted_logits(200)[1]
    assert softmax(sharpness(mix) * (logits + class_biases(logits, mix))).mean(0) == pytest.approx(mix, abs=2e-3)


def test_a_shift_is_found_and_undone():
    ids, logits = shifted_logits(400, shift=(4.0, 0, 0, 0))
    unshifted = uar(ids, logits - np.array([4.0, 0, 0, 0]))
    assert uar(ids, logits) < unshifted - 0.1 < unshifted - 0.02 < uar(ids, logits + class_biases(logits, EVEN, 4.0))


def test_an_even_mix_is_met_by_the_mean_probability_since_it_varies_less_over_a_few_recordings():
    def error(mix) -> float:  # of the biases that 8 recordings of an even mix give, against those of very many
        wanted = class_biases(shifted_logits(4000)[1], mix)
        return np.mean([np.abs(class_biases(shifted_logits(8, seed=n)[1], mix) - wanted).mean() for n in range(20)])

    nearly_even = EVEN + np.array([1e-4, -1e-4, 0, 0])
    assert error(EVEN) < 0.9 * error(nearly_even)


def test_a_model_that_is_right_already_is_left_alone():
    ids, _ = shifted_logits(4000, shift=(0, 0, 0, 0))
    logits = 8 * np.eye(4)[ids]
    assert np.abs(class_biases(logits, np.bincount(ids) / len(ids), 4.0)).max() < 0.1


def test_few_recordings_move_the_biases_less_than_many_and_none_not_at_all():
    logits = shifted_logits(200)[1]
    norms = [np.linalg.norm(class_biases(logits[:n], EVEN, 4.0)) for n in (0, 1, 4, 200)]
    assert norms[0] == pytest.approx(0, abs=1e-6) and norms[0] < norms[1] < norms[2] < norms[3]


def test_the_order_of_recordings_does_not_matter():
    logits = shifted_logits(50)[1]
    turned = class_biases(logits[::-1], EVEN, 4.0)
    np.testing.assert_allclose(class_biases(logits, EVEN, 4.0), turned, atol=1e-6)


def test_predictions_beyond_doubt_give_finite_biases():
    logits = np.tile([1000.0, -1000, -1000, -1000], (20, 1))
    assert np.isfinite(class_biases(logits, EVEN)).all()


def test_labels_that_the_expected_mix_leaves_out_have_the_rest():
    assert expected_mix({"neutral": 0.7}, LABELS) == pytest.approx([0.1, 0.1, 0.7, 0.1])


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_told_the_true_mix_a_skewed_set_is_not_harmed(share):
    mix = np.array([share, *3 * [(1 - share) / 3]])
    for shift in ((0, 0, 0, 0), (2, 0, -1, -1), (-2, 0, 1, 1)):
        ids, logits = shifted_logits(300, mix, shift=shift)
        adapted = logits + class_biases(logits, mix, 4.0)
        assert (adapted.argmax(1) == ids).mean() > (logits.argmax(1) == ids).mean() - 0.01


@pytest.mark.parametrize("count", [30, 300])
def test_the_recordings_own_discriminant_is_that_of_their_scatter(count):
    """(Σ + r·I)⁻¹μ, of fewer recordings than numbers and of more."""
    generator, size = np.random.default_rng(0), 100
    speech, predicted = generator.normal(size=(count, size)), np.eye(4)[generator.integers(4, size=count)]
    speech += 5  # wherever they lie
    in_means = generator.uniform(1, 9, count)  # how much each counts in the mean of its class, and there alone
    weights = own_discriminant(speech, predicted, np.ones(count), in_means)
    rows, shares = speech - speech.mean(0), in_means[:, None] * predicted
    centers = (shares.T @ rows) / (shares.sum(0) + 1)[:, None]
    around = rows - predicted @ centers
    scatter = around.T @ around / count + size * RIDGE_SHARE * np.eye(size)
    np.testing.assert_allclose(weights @ scatter, centers - centers.mean(0), atol=1e-8)
