import numpy as np
import pytest

from train.evaluation.calibration import (
    cross_fitted_temperatures,
    fit_temperature,
    negative_log_likelihood,
    with_temperature,
)
from train.evaluation.metrics import expected_calibration_error


@pytest.fixture
def calibrated():
    """Classes drawn from the very probabilities that are given for them."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 4000)
    references = np.array([rng.choice(4, p=row) for row in probabilities])
    return references, probabilities


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_that_distorted_probabilities_is_found_again(calibrated, sharpness):
    references, probabilities = calibrated
    distorted = with_temperature(probabilities, sharpness)
    found = fit_temperature(references, distorted, np.arange(len(references)) % 8)
    assert found == pytest.approx(1 / sharpness, rel=0.06)


def test_scaling_keeps_the_prediction_and_lowers_the_calibration_error(calibrated):
    references, probabilities = calibrated
    sure = with_temperature(probabilities, 0.3)
    scaled = with_temperature(sure, fit_temperature(references, sure, np.arange(len(references)) % 8))
    assert (scaled.argmax(1) == sure.argmax(1)).all()
    assert scaled.sum(1) == pytest.approx(1)
    assert expected_calibration_error(references, scaled) < 0.5 * expected_calibration_error(references, sure)
    assert negative_log_likelihood(references, scaled) < negative_log_likelihood(references, sure)


def test_a_probability_of_zero_is_no_infinity():
    sure = np.eye(4)[[0, 1, 2, 3, 0]]
    assert np.isfinite(fit_temperature([0, 1, 2, 3, 1], sure, list("ababa")))


def test_no_speaker_helps_to_fit_the_temperature_it_is_scored_with(calibrated):
    references, probabilities = calibrated[0], with_temperature(calibrated[1], 0.3)
    speakers = np.arange(len(references)) % 10
    before = cross_fitted_temperatures(references, probabilities, speakers)
    spoiled = references.copy()
    spoiled[speakers == 3] = (references[speakers == 3] + 1) % 4
    after = cross_fitted_temperatures(spoiled, probabilities, speakers)
    same_half = before == before[3]
    assert (after[same_half] == before[same_half]).all()
    assert (after[~same_half] != before[~same_half]).all()
    with pytest.raises(ValueError, match="two speakers"):
        cross_fitted_temperatures(references, probabilities, np.zeros(len(references)))


def test_one_speaker_gives_no_temperature(calibrated):
    references, probabilities = calibrated
    assert fit_temperature(references, with_temperature(probabilities, 0.3), np.zeros(len(references))) == 1.0


def test_a_temperature_that_does_not_carry_over_to_other_speakers_is_shrunk_away(calibrated):
    """Of two speakers one is too sure and one not sure enough: what suits one makes the other worse."""
    references, probabilities = calibrated
    speakers = np.arange(len(references)) % 2
    flat, sure = with_temperature(probabilities, 2.5), with_temperature(probabilities, 0.4)
    distorted = np.where(speakers[:, None] == 0, sure, flat)
    assert fit_temperature(references, distorted, speakers) == 1.0
