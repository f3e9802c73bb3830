"""How well emotions are recognized: UAR first, then WA, macro-F1, recall per emotion, calibration. And how well
attributes are rated: concordance (CCC) first, then Pearson's correlation and the root of the mean squared error.

Every figure here is a function of counts that add up over recordings: a confusion matrix (rows are
references), the bins of a reliability diagram, or the moments of ratings and predictions. Counts are kept per
speaker, so that a bootstrap which resamples speakers is one matrix product, and 1000 resamples cost milliseconds.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

try:
    import datasets
    import evaluate
except ImportError:  # SpeechEmotionMetrics needs them, and nothing else here
    datasets = evaluate = None

CALIBRATION_BINS = 15  # equal-width bins of confidence, as in Guo et al. 2017


class Interval(NamedTuple):
    """An estimate on all speakers, and the percentiles of the same figure over resampled speakers."""

    estimate: float
    low: float
    high: float


# --- counts -------------------------------------------------------------------------------------------


def confusion_by_speaker(references, predictions, speakers, num_classes: int) -> tuple[np.ndarray, list]:
    """Confusion matrices `(speakers, classes, classes)`, rows references, and the speakers in their order.

    `references`, `predictions`: class ids `(n,)`; `speakers`: anything sortable, `(n,)`. To compare two
    models, or to average over conditions, pass the same `num_classes` each time and stack the counts.
    Raises ValueError where lengths differ, nothing was given, or an id is outside `range(num_classes)`.
    """
    references, predictions = _class_ids(references, predictions, num_classes)
    names, speaker_ids = _speaker_ids(speakers, len(references))
    flat = (speaker_ids * num_classes + references) * num_classes + predictions
    counts = np.bincount(flat, minlength=len(names) * num_classes**2)
    return counts.reshape(len(names), num_classes, num_classes), names


def calibration_by_speaker(
    references, probabilities, speakers, bins: int = CALIBRATION_BINS
) -> tuple[np.ndarray, list]:
    """Reliability counts `(speakers, bins, 3)` (recordings, correct, summed confidence), and the speakers."""
    probabilities = _probabilities(probabilities)
    references, predictions = _class_ids(references, probabilities.argmax(1), probabilities.shape[1])
    names, speaker_ids = _speaker_ids(speakers, len(references))
    confidence = probabilities.max(1)
    bin_ids = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    flat = speaker_ids * bins + bin_ids
    sums = [
        np.bincount(flat, weights, len(names) * bins)
        for weights in (None, (predictions == references).astype(float), confidence)
    ]
    return np.stack(sums, axis=-1).reshape(len(names), bins, 3), names


# --- figures of counts; all take any leading axes ------------------------------------------------------


def recalls_of(confusion: np.ndarray) -> np.ndarray:
    """Recall per class `(..., classes)` of confusion matrices; NaN for a class absent from the references."""
    total = confusion.sum(-1).astype(float)
    return np.divide(
        np.diagonal(confusion, axis1=-2, axis2=-1), total, out=np.full(total.shape, np.nan), where=total > 0
    )


def uar_of(confusion: np.ndarray) -> np.ndarray:
    """Unweighted average recall `(...)`, over the classes that the references contain."""
    recalls = recalls_of(confusion)
    present = ~np.isnan(recalls)
    return np.where(present, recalls, 0).sum(-1) / np.maximum(present.sum(-1), 1)


def wa_of(confusion: np.ndarray) -> np.ndarray:
    """Weighted accuracy `(...)`: the share of recordings that are right."""
    return np.diagonal(confusion, axis1=-2, axis2=-1).sum(-1) / np.maximum(confusion.sum((-2, -1)), 1)


def macro_f1_of(confusion: np.ndarray) -> np.ndarray:
    """F1 averaged over the classes that the references contain `(...)`."""
    in_references, in_predictions = confusion.sum(-1), confusion.sum(-2)
    f1 = 2 * np.diagonal(confusion, axis1=-2, axis2=-1) / np.maximum(in_references + in_predictions, 1)
    present = in_references > 0
    return np.where(present, f1, 0).sum(-1) / np.maximum(present.sum(-1), 1)


def calibration_error_of(reliability: np.ndarray) -> np.ndarray:
    """Expected calibration error `(...)` of reliability counts `(..., bins, 3)` (Guo et al. 2017, eq. 3)."""
    recordings, correct, confidence = np.moveaxis(reliability, -1, 0)
    return np.abs(correct - confidence).sum(-1) / np.maximum(recordings.sum(-1), 1)


# --- ratings ---


def moments_by_speaker(ratings, predicted, speakers) -> tuple[np.ndarray, list]:
    """Counts `(speakers, 6)` of ratings and predictions `(n,)` of an attribute, and the speakers: recordings, sums of
    predictions and ratings, of their squares and of their product. Ratings that are NaN are left out.

    Sums are of what lies around the ratings' mean, which no figure sees and precision does. Raises ValueError where no
    recording is rated, or lengths differ.
    """
    ratings, predicted = np.asarray(ratings, np.float64), np.asarray(predicted, np.float64)
    if not ratings.shape == predicted.shape == (len(speakers),):
        raise ValueError(f"{ratings.shape} ratings and {predicted.shape} predictions of {len(speakers)} speakers.")
    rated = np.isfinite(ratings)
    if not rated.any():
        raise ValueError("No recording is rated.")
    names, ids = _speaker_ids(np.asarray(speakers)[rated], int(rated.sum()))
    around = ratings[rated].mean()
    r, p = ratings[rated] - around, predicted[rated] - around
    sums = [np.bincount(ids, values, len(names)) for values in (np.ones_like(r), p, r, p * p, r * r, p * r)]
    return np.stack(sums, axis=-1), names


def concordance_of(moments: np.ndarray) -> np.ndarray:
    """Concordance correlation coefficient `(...)` (Lin 1989) of moments `(..., 6)`; 0 where nothing varies."""
    means, variances, covariance = _central(moments)
    spread = variances.sum(-1) + np.square(means[..., 0] - means[..., 1])
    return 2 * covariance / np.maximum(spread, 1e-12)


def pearson_of(moments: np.ndarray) -> np.ndarray:
    """Pearson's correlation `(...)`; 0 where nothing varies."""
    _, variances, covariance = _central(moments)
    return np.clip(covariance / np.maximum(np.sqrt(np.maximum(variances, 0).prod(-1)), 1e-12), -1, 1)


def rmse_of(moments: np.ndarray) -> np.ndarray:
    """Root of the mean squared error `(...)`, on the scale of the ratings."""
    n, _, _, pp, rr, pr = np.moveaxis(np.asarray(moments, float), -1, 0)
    return np.sqrt(np.maximum(pp - 2 * pr + rr, 0) / np.maximum(n, 1))


def mean_concordance(ratings, predicted) -> float:
    """CCC of ratings and predictions `(n, attributes)`, averaged over the attributes that have a rating."""
    pairs = zip(np.asarray(ratings).T, np.asarray(predicted).T, strict=True)
    found = [moments_by_speaker(r, p, np.zeros(len(r)))[0] for r, p in pairs if np.isfinite(r).any()]
    return float(np.mean([concordance_of(moments[0]) for moments in found])) if found else 0.0


def _central(moments: np.ndarray):
    """(means (..., 2) of predictions and ratings, variances (..., 2), covariance (...))."""
    moments = np.asarray(moments, float) / np.maximum(moments[..., :1], 1)
    means = moments[..., 1:3]
    return means, moments[..., 3:5] - np.square(means), moments[..., 5] - means.prod(-1)


STATISTICS = {"uar": uar_of, "wa": wa_of, "macro_f1": macro_f1_of, "ece": calibration_error_of}
STATISTICS |= {"ccc": concordance_of, "pearson": pearson_of, "rmse": rmse_of}


# --- figures of predictions ---------------------------------------------------------------------------


def uar(references, predictions) -> float:
    """Unweighted average recall in [0, 1] over the classes that `references` `(n,)` contain."""
    num_classes = 1 + int(max(np.max(references), np.max(predictions)))
    return float(uar_of(_confusion(references, predictions, num_classes)))


def expected_calibration_error(references, probabilities, bins: int = CALIBRATION_BINS) -> float:
    """Mean distance of confidence from accuracy over bins of confidence, weighted by their size, in [0, 1].

    `references`: class ids `(n,)`; `probabilities`: `(n, classes)`, rows adding up to 1 (else ValueError).
    """
    counts, _ = calibration_by_speaker(references, probabilities, np.zeros(len(references)), bins)
    return float(calibration_error_of(counts[0]))


def scores(references, predictions, label_names: Sequence[str] | None = None, probabilities=None) -> dict:
    """`{"uar", "wa", "macro_f1", "recall_<name>"…}` in [0, 1], and `"ece"` where there are probabilities.

    `predictions` are class ids `(n,)`, or probabilities `(n, classes)`, whose largest is then the prediction.
    A class absent from the references has no recall: it is left out of UAR and macro-F1 and out of the
    result, with a warning that names it.
    """
    if np.ndim(predictions) == 2:
        probabilities = predictions = _probabilities(predictions)
        predictions = predictions.argmax(1)
    if probabilities is not None:
        num_classes = np.shape(probabilities)[1]
    else:
        num_classes = 1 + int(max(np.max(references, initial=0), np.max(predictions, initial=0)))
    names = list(label_names) if label_names is not None else [str(c) for c in range(num_classes)]
    if len(names) < num_classes:
        raise ValueError(f"{num_classes} classes occur, but {len(names)} label names were given: {names}.")
    confusion = _confusion(references, predictions, len(names))
    recalls = recalls_of(confusion)
    _warn_of_absent([name for name, recall in zip(names, recalls, strict=True) if np.isnan(recall)])
    result = {name: float(STATISTICS[name](confusion)) for name in ("uar", "wa", "macro_f1")}
    result |= {f"recall_{n}": float(r) for n, r in zip(names, recalls, strict=True) if not np.isnan(r)}
    if probabilities is not None:
        result["ece"] = expected_calibration_error(references, probabilities)
    return result


class SpeechEmotionMetrics(evaluate.Metric if evaluate else object):
    """`scores` as a metric of the `evaluate` library, made from this file alone, so without a network.

    `SpeechEmotionMetrics().compute(predictions=..., references=..., label_names=[...])`, or
    `evaluate.load("train/evaluation/metrics.py")`. `predictions` are class ids or probabilities; with class ids,
    `probabilities=` may be passed beside them.
    """

    def _info(self):
        id_ = datasets.Value("int64")
        distribution = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="UAR, WA, macro-F1, recall per emotion and expected calibration error.",
            citation="",
            inputs_description="predictions: class ids or probabilities; references: class ids.",
            features=[
                datasets.Features({"predictions": id_, "references": id_}),
                datasets.Features({"predictions": distribution, "references": id_}),
            ],
        )

    def _compute(self, predictions, references, label_names=None, probabilities=None):
        return scores(np.asarray(references), np.asarray(predictions), label_names, probabilities)


# --- intervals ----------------------------------------------------------------------------------------


def bootstrap_interval(
    statistic: str | Callable,
    counts: np.ndarray,
    strata: Sequence | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A figure with its interval from resampling speakers (percentile bootstrap, Efron 1979).

    `statistic`: a name in `STATISTICS`, or a function from counts `(r, ...)` to figures `(r,)`.
    `counts`: `(speakers, ...)` from `confusion_by_speaker` or `calibration_by_speaker`. For a mean over K
    conditions stack them to `(speakers, K, ...)` and take the mean of `uar_of(counts)` over the last axis.
    `strata`: a value per speaker, say its corpus; each is then resampled to its own size.
    With one speaker there is nothing to resample: low and high are NaN, with a warning.
    """
    return _interval(_statistic(statistic), np.asarray(counts), strata, resamples, confidence, seed)


def paired_bootstrap_difference(
    statistic: str | Callable,
    counts: np.ndarray,
    other_counts: np.ndarray,
    strata: Sequence | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`statistic(counts) - statistic(other_counts)` with its interval; both see the same resampled speakers.

    Counts `(speakers, ...)` are those of two models on the same speakers in the same order.
    """
    counts, other_counts = np.asarray(counts), np.asarray(other_counts)
    if counts.shape != other_counts.shape:
        raise ValueError(
            f"A paired difference needs the same speakers and classes on both sides, "
            f"got counts of shape {counts.shape} and {other_counts.shape}."
        )
    figure = _statistic(statistic)

    def difference(pair):
        return figure(pair[:, 0]) - figure(pair[:, 1])

    return _interval(difference, np.stack([counts, other_counts], 1), strata, resamples, confidence, seed)


def _interval(figure, counts, strata, resamples, confidence, seed) -> Interval:
    estimate = float(figure(counts.sum(0, keepdims=True))[0])
    if len(counts) < 2:
        warnings.warn("One speaker only: no interval from resampling speakers.", stacklevel=3)
        return Interval(estimate, float("nan"), float("nan"))
    weights = _resampling_weights(len(counts), strata, resamples, np.random.default_rng(seed))
    figures = figure(np.tensordot(weights, counts, axes=1))
    low, high = np.quantile(figures, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


def _resampling_weights(num_speakers: int, strata, resamples: int, rng) -> np.ndarray:
    """How often each speaker is drawn in each resample: `(resamples, speakers)`."""
    _, groups = np.unique(np.zeros(num_speakers) if strata is None else strata, return_inverse=True)
    if len(groups) != num_speakers:
        raise ValueError(f"strata has {len(groups)} values for {num_speakers} speakers.")
    weights = np.zeros((resamples, num_speakers))
    for group in range(groups.max() + 1):
        members = np.flatnonzero(groups == group)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    return weights


def _statistic(statistic: str | Callable) -> Callable:
    if callable(statistic):
        return statistic
    if statistic not in STATISTICS:
        raise ValueError(f"No statistic {statistic!r}; choose from {', '.join(STATISTICS)} or pass a function.")
    return STATISTICS[statistic]


# --- checks -------------------------------------------------------------------------------------------


def _confusion(references, predictions, num_classes: int) -> np.ndarray:
    return confusion_by_speaker(references, predictions, np.zeros(len(references)), num_classes)[0][0]


def _speaker_ids(speakers, num_recordings: int) -> tuple[list, np.ndarray]:
    if len(speakers) != num_recordings:
        raise ValueError(f"{len(speakers)} speakers for {num_recordings} recordings.")
    names, ids = np.unique(np.asarray(speakers), return_inverse=True)
    return names.tolist(), ids


def _class_ids(references, predictions, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    references, predictions = np.asarray(references), np.asarray(predictions)
    if references.shape != predictions.shape or references.ndim != 1:
        raise ValueError(
            f"references and predictions must be one id per recording, got shapes {references.shape} and "
            f"{predictions.shape}."
        )
    if not len(references):
        raise ValueError("There is no recording to score.")
    for what, ids in (("references", references), ("predictions", predictions)):
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{what} must be integer class ids, got {ids.dtype}.")
        if ids.min() < 0 or ids.max() >= num_classes:
            raise ValueError(f"{what} hold ids {ids.min()}…{ids.max()}, outside the {num_classes} classes.")
    return references.astype(np.int64), predictions.astype(np.int64)


def _probabilities(probabilities) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    # NaN fails this comparison too. bf16 softmax rows are off by up to 1e-2.
    if probabilities.ndim != 2 or not np.all(np.abs(probabilities.sum(1) - 1) < 2e-2):
        raise ValueError(
            "Probabilities must be (recordings, classes), rows adding up to 1; logits need a softmax first."
        )
    return probabilities


def _warn_of_absent(names: list[str]) -> None:
    if names:
        warnings.warn(f"No reference is labeled {', '.join(names)}: left out of UAR and macro-F1.", stacklevel=3)
