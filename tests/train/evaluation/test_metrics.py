import warnings

import datasets
import evaluate
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score
from transformers import pipeline

import modeling_edrl_mea  # noqa: F401  registers the model
from tests.conftest import noise_recordings
from train.evaluation import metrics
from train.evaluation.metrics import SpeechEmotionMetrics, confusion_by_speaker, scores, uar

EMOTIONS = ["anger", "happiness", "neutral", "sadness"]


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    references = rng.integers(0, 4, 400)
    probabilities = rng.dirichlet(np.ones(4), 400)
    return references, probabilities, rng.integers(0, 20, 400).astype(str)


def test_figures_equal_those_of_scikit_learn(predictions):
    references, probabilities, _ = predictions
    predictions = probabilities.argmax(1)
    ours = scores(references, predictions, EMOTIONS)
    assert ours["uar"] == pytest.approx(balanced_accuracy_score(references, predictions))
    assert ours["wa"] == pytest.approx(accuracy_score(references, predictions))
    assert ours["macro_f1"] == pytest.approx(f1_score(references, predictions, average="macro"))
    for name, recall in zip(EMOTIONS, recall_score(references, predictions, average=None), strict=True):
        assert ours[f"recall_{name}"] == pytest.approx(recall)
    assert uar(references, predictions) == ours["uar"]


def test_probabilities_give_the_figures_of_their_largest_and_a_calibration_error(predictions):
    references, probabilities, _ = predictions
    from_probabilities = scores(references, probabilities, EMOTIONS)
    assert 0 < from_probabilities.pop("ece") < 1
    assert from_probabilities == scores(references, probabilities.argmax(1), EMOTIONS)


def test_calibration_error_follows_its_definition(predictions):
    references, probabilities, _ = predictions
    confidence, right = probabilities.max(1), probabilities.argmax(1) == references
    expected = 0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.expected_calibration_error(references, probabilities, bins=10) == pytest.approx(expected)


def test_a_model_as_sure_as_it_is_right_has_no_calibration_error():
    probabilities = np.tile([0.75, 0.25], (100, 1))
    assert metrics.expected_calibration_error(np.repeat([0, 1], [75, 25]), probabilities) == pytest.approx(0)
    assert metrics.expected_calibration_error(np.ones(100, int), probabilities) == pytest.approx(0.75)


def test_a_class_absent_from_the_references_is_named_and_left_out():
    with pytest.warns(UserWarning, match="sadness"):
        result = scores([0, 0, 1, 2], [0, 3, 1, 2], EMOTIONS)
    assert result["uar"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert "recall_sadness" not in result


def test_a_class_that_one_resample_lacks_does_not_spoil_it():
    counts, _ = confusion_by_speaker([0, 0, 1], [0, 0, 1], ["a", "b", "c"], 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.bootstrap_interval("uar", counts) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_the_evaluate_metric_works_without_a_network(predictions, as_probabilities, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    references, probabilities, _ = predictions
    predictions = probabilities if as_probabilities else probabilities.argmax(1)
    expected = scores(references, predictions, EMOTIONS)
    for metric in (SpeechEmotionMetrics(), evaluate.load(metrics.__file__)):
        result = metric.compute(predictions=predictions, references=references, label_names=EMOTIONS)
        assert result == pytest.approx(expected)
    metric = SpeechEmotionMetrics()
    metric.add_batch(predictions=predictions[:100], references=references[:100])
    metric.add_batch(predictions=predictions[100:], references=references[100:])
    assert metric.compute(label_names=EMOTIONS) == pytest.approx(expected)


def test_the_evaluator_of_evaluate_takes_a_models_folder_and_the_metric(model_folder):
    """Of recordings as `datasets` holds them, without a network."""
    recordings = noise_recordings(4)
    rows = {"audio": [{"array": recording, "sampling_rate": 16_000} for recording in recordings], "label": [0, 1, 2, 3]}
    found = evaluate.evaluator("audio-classification").compute(
        model_or_pipeline=str(model_folder),
        data=datasets.Dataset.from_dict(rows).with_format("numpy"),
        input_column="audio",
        label_column="label",
        metric=SpeechEmotionMetrics(),
        label_mapping={emotion: label for label, emotion in enumerate(EMOTIONS)},
    )
    classify = pipeline("audio-classification", model=str(model_folder))
    right = [classify(one)[0]["label"] == emotion for one, emotion in zip(recordings, EMOTIONS, strict=True)]
    assert found["wa"] == pytest.approx(np.mean(right))


def test_metrics_of_evaluate_are_combined_with_ours():
    both = evaluate.combine([SpeechEmotionMetrics(), evaluate.load(metrics.__file__)])
    both.add_batch(predictions=[0, 1, 2, 3], references=[0, 1, 2, 2])
    found = both.compute()
    assert found["speech_emotion_metrics_0_uar"] == found["speech_emotion_metrics_1_uar"] == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        ([], [], "no recording"),
        ([0, 1], [0], "one id per recording"),
        ([0.0, 1.0], [0, 1], "integer"),
        ([0, -1], [0, 1], "outside"),
        ([0, 1], [[0.5, 0.5], [np.nan, 1.0]], "adding up to 1"),
        ([0, 1], [[2.0, -3.0], [1.0, 4.0]], "softmax"),
    ],
)
def test_input_that_cannot_be_scored_is_refused(references, predictions, message):
    with pytest.raises(ValueError, match=message):
        scores(references, predictions)


def test_intervals_resample_speakers_not_recordings():
    """Recordings of one speaker repeated a hundred times add no information."""
    references, predictions = np.tile([0, 1], 8), np.tile([0, 1, 1, 1], 4)
    speakers = np.repeat(np.arange(8), 2)
    once, _ = confusion_by_speaker(references, predictions, speakers, 2)
    again, _ = confusion_by_speaker(*(np.tile(x, 100) for x in (references, predictions, speakers)), 2)
    assert metrics.bootstrap_interval("uar", again) == pytest.approx(metrics.bootstrap_interval("uar", once))


def test_the_vectorized_interval_is_that_of_resampling_one_speaker_after_another(predictions):
    references, probabilities, speakers = predictions
    predictions = probabilities.argmax(1)
    counts, names = confusion_by_speaker(references, predictions, speakers, 4)
    rng = np.random.default_rng(1)
    recordings = [np.flatnonzero(speakers == name) for name in names]
    drawn = [np.concatenate([recordings[s] for s in rng.integers(0, 20, 20)]) for _ in range(1000)]
    plain = [balanced_accuracy_score(references[rows], predictions[rows]) for rows in drawn]
    low, high = np.quantile(plain, [0.025, 0.975])
    interval = metrics.bootstrap_interval("uar", counts, resamples=4000)
    assert interval.estimate == pytest.approx(balanced_accuracy_score(references, predictions))
    assert interval.low == pytest.approx(low, abs=0.01)
    assert interval.high == pytest.approx(high, abs=0.01)


def test_a_paired_difference_is_narrower_than_its_parts(predictions):
    references, probabilities, speakers = predictions
    predictions = probabilities.argmax(1)
    better = np.where(np.arange(400) % 10 == 0, references, predictions)
    counts, _ = confusion_by_speaker(references, predictions, speakers, 4)
    better_counts, _ = confusion_by_speaker(references, better, speakers, 4)
    difference = metrics.paired_bootstrap_difference("uar", better_counts, counts)
    alone = metrics.bootstrap_interval("uar", counts)
    assert difference.estimate == pytest.approx(uar(references, better) - uar(references, predictions))
    assert 0 < difference.low < difference.estimate < difference.high
    assert difference.high - difference.low < alone.high - alone.low
    assert metrics.paired_bootstrap_difference("uar", counts, counts) == (0, 0, 0)


def test_conditions_can_be_averaged_before_resampling(predictions):
    references, probabilities, speakers = predictions
    counts, _ = confusion_by_speaker(references, probabilities.argmax(1), speakers, 4)
    averaged = metrics.bootstrap_interval(lambda c: metrics.uar_of(c).mean(-1), np.stack([counts] * 3, 1))
    assert averaged == pytest.approx(metrics.bootstrap_interval("uar", counts))


def test_strata_keep_their_size_in_every_resample():
    strata = ["emodb"] * 3 + ["ravdess"] * 5
    weights = metrics._resampling_weights(8, strata, 50, np.random.default_rng(0))
    assert np.all(weights[:, :3].sum(1) == 3) and np.all(weights[:, 3:].sum(1) == 5)


def test_calibration_error_has_an_interval_too(predictions):
    references, probabilities, speakers = predictions
    counts, _ = metrics.calibration_by_speaker(references, probabilities, speakers)
    interval = metrics.bootstrap_interval("ece", counts)
    assert interval.estimate == pytest.approx(metrics.expected_calibration_error(references, probabilities))
    assert interval.low < interval.high


def test_one_speaker_has_no_interval():
    counts, _ = confusion_by_speaker([0, 1], [0, 1], ["a", "a"], 2)
    with pytest.warns(UserWarning, match="One speaker"):
        interval = metrics.bootstrap_interval("uar", counts)
    assert interval.estimate == 1 and np.isnan(interval.low) and np.isnan(interval.high)


def test_two_models_on_different_speakers_are_not_compared():
    counts, _ = confusion_by_speaker([0, 1], [0, 1], ["a", "b"], 2)
    with pytest.raises(ValueError, match="same speakers"):
        metrics.paired_bootstrap_difference("uar", counts, counts[:1])


# Ratings


def test_figures_of_ratings_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    ratings = rng.uniform(1, 7, 300)
    predicted = 0.5 * ratings + 3 + rng.normal(0, 0.5, 300)
    ratings[::7] = np.nan
    moments, speakers = metrics.moments_by_speaker(ratings, predicted, [f"s{i % 6}" for i in range(300)])
    there = ~np.isnan(ratings)
    r, p = ratings[there], predicted[there]
    assert moments.shape == (len(speakers), 6) == (6, 6) and moments[:, 0].sum() == there.sum()
    total = moments.sum(0)
    correlation = np.corrcoef(r, p)[0, 1]
    concordance = 2 * correlation * r.std() * p.std() / (r.var() + p.var() + (r.mean() - p.mean()) ** 2)
    assert metrics.concordance_of(total) == pytest.approx(concordance)
    assert metrics.pearson_of(total) == pytest.approx(correlation)
    assert metrics.rmse_of(total) == pytest.approx(np.sqrt(np.mean((r - p) ** 2)))
    assert metrics.mean_concordance(ratings[:, None], predicted[:, None]) == pytest.approx(concordance)
    interval = metrics.bootstrap_interval("ccc", moments)
    assert interval.low < interval.estimate < interval.high
    shifted, _ = metrics.moments_by_speaker(ratings + 1e6, predicted + 1e6, [f"s{i % 6}" for i in range(300)])
    assert metrics.concordance_of(shifted.sum(0)) == pytest.approx(concordance)


def test_a_constant_goes_with_nothing():
    moments, _ = metrics.moments_by_speaker([1.0, 2, 3], [2.0, 2, 2], ["a"] * 3)
    assert metrics.concordance_of(moments[0]) == metrics.pearson_of(moments[0]) == 0
    with pytest.raises(ValueError, match="No recording is rated"):
        metrics.moments_by_speaker([np.nan], [1.0], ["a"])
