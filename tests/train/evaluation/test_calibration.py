import numpy as np
import pytest

from train.evaluation.calibration import (
    coverage_thresholds,
    cross_fitted_temperatures,
    fit_temperature,
    likeliest_temperature,
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
    found = fit_temperature(references, distorted, np.arange(len(references)) % 100)
    assert found == pytest.approx(1 / sharpness, rel=0.06)


def test_scaling_keeps_the_prediction_and_lowers_the_calibration_error(calibrated):
    references, probabilities = calibrated
    sure = with_temperature(probabilities, 0.3)
    scaled = with_temperature(sure, fit_temperature(references, sure, np.arange(len(references)) % 20))
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


@pytest.mark.parametrize(("n_speakers", "believed"), [(1, 1 / 3), (2, 1 / 2), (8, 0.8)])
def test_the_fewer_speakers_the_nearer_the_temperature_is_to_1(calibrated, n_speakers, believed):
    references, probabilities = calibrated
    found = fit_temperature(references, with_temperature(probabilities, 0.4), np.arange(len(references)) % n_speakers)
    assert np.log(found) == pytest.approx(believed * np.log(1 / 0.4), rel=0.1)


def test_two_speakers_of_a_calibrated_model_give_a_temperature_near_1(calibrated):
    """From forty recordings alone the likeliest temperature may be far off."""
    few = [slice(start, start + 40) for start in range(0, 600, 40)]
    references, probabilities = calibrated
    likeliest = [likeliest_temperature(references[rows], probabilities[rows]) for rows in few]
    found = [fit_temperature(references[rows], probabilities[rows], np.arange(40) % 2) for rows in few]
    assert np.abs(np.log(found)).mean() < 0.5 * np.abs(np.log(likeliest)).mean()
    assert np.abs(np.log(found)).max() < np.log(1.4) < np.abs(np.log(likeliest)).max()


def test_a_temperature_that_does_not_carry_over_to_other_speakers_is_shrunk_away(calibrated):
    """Of two speakers one is too sure and one not sure enough: what suits one makes the other worse."""
    references, probabilities = calibrated
    speakers = np.arange(len(references)) % 2
    flat, sure = with_temperature(probabilities, 2.5), with_temperature(probabilities, 0.4)
    distorted = np.where(speakers[:, None] == 0, sure, flat)
    assert fit_temperature(references, distorted, speakers) == 1.0


@pytest.mark.parametrize("coverage", ["0.5", "0.9", "0.95"])
def test_sets_hold_the_right_label_as_often_as_asked_and_not_much_more(calibrated, coverage):
    references, probabilities = calibrated
    right = probabilities[np.arange(len(references)), references]
    threshold = coverage_thresholds([right[:2000]])[coverage]
    assert float(coverage) - 0.02 < (right[2000:] >= threshold).mean() < float(coverage) + 0.03


def test_the_group_that_needs_the_widest_sets_decides(calibrated):
    references, probabilities = calibrated
    right = probabilities[np.arange(len(references)), references]
    hard, easy = np.sort(right)[:2000], np.sort(right)[2000:]
    assert coverage_thresholds([easy, hard]) == coverage_thresholds([hard])
    assert coverage_thresholds([hard])["0.9"] < coverage_thresholds([right])["0.9"]


def test_of_few_recordings_none_may_be_missed():
    assert coverage_thresholds([np.full(18, 0.4)])["0.95"] == 0
    assert coverage_thresholds([np.full(19, 0.4)])["0.95"] == 0.4
