"""Temperature scaling (Guo et al. 2017): one number that makes a model as sure as it is right; and sets of labels that
hold the right one as often as is asked for."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.model_selection import GroupKFold

TEMPERATURES = (0.05, 20.0)  # searched between; beyond them probabilities are one-hot or flat
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the likeliest log temperature
MOST_FOLDS = 10  # of speakers, over which the share is chosen
PRIOR_SPEAKERS = 2  # for whom T = 1 counts: so many speakers seen are believed by half
SMALLEST = 1e-12  # probability: float32 softmax can give 0, whose logarithm no temperature moves


def with_temperature(probabilities: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Probabilities (N, C) as if the logits had been divided by a temperature, or by one for each row (N,)."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), SMALLEST))
    scaled = logits / np.reshape(temperature, (-1, 1))
    scaled = np.exp(scaled - scaled.max(1, keepdims=True))
    return scaled / scaled.sum(1, keepdims=True)


def negative_log_likelihood(references: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over recordings, in nats."""
    right = np.asarray(probabilities)[np.arange(len(references)), references]
    return float(-np.log(np.maximum(right, SMALLEST)).mean())


def fit_temperature(references, probabilities, speakers) -> float:
    """The temperature for held-out references (N,) given probabilities (N, C), shrunk toward 1.

    log T is the likeliest one times n / (n + PRIOR_SPEAKERS) for n speakers (N,), as they are few of all there are, and
    times a share of [`SHARES`]: the one under which temperatures fitted on some speakers make the others likeliest.

    Fit it on speakers that neither training nor the test has: on training speakers a model is right too often.
    ValueError where there is no recording.
    """
    references, probabilities = np.asarray(references), np.asarray(probabilities)
    if not len(references):
        raise ValueError("A temperature needs recordings to be fitted on, and there are none.")
    groups = np.unique(np.asarray(speakers), return_inverse=True)[1]
    n_speakers = int(groups.max()) + 1
    share = share_that_carries_over(references, probabilities, groups) if n_speakers > 1 else 1.0
    return likeliest_temperature(references, probabilities) ** (share * n_speakers / (n_speakers + PRIOR_SPEAKERS))


def share_that_carries_over(references: np.ndarray, probabilities: np.ndarray, groups: np.ndarray) -> float:
    """The share of the log temperature of some groups (N,) that makes the other groups likeliest."""
    losses = np.zeros(len(SHARES))
    for seen, unseen in GroupKFold(min(groups.max() + 1, MOST_FOLDS)).split(references, groups=groups):
        temperature = likeliest_temperature(references[seen], probabilities[seen])
        for place, share in enumerate(SHARES):
            scaled = with_temperature(probabilities[unseen], temperature**share)
            losses[place] += len(unseen) * negative_log_likelihood(references[unseen], scaled)
    return SHARES[int(losses.argmin())]


def likeliest_temperature(references: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature under which references (N,) are likeliest given probabilities (N, C)."""

    def loss(log_temperature):
        return negative_log_likelihood(references, with_temperature(probabilities, np.exp(log_temperature)))

    # The loss is unimodal in 1/T, so in log T too.
    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def cross_fitted_temperatures(references, probabilities, speakers, seed: int = 0) -> np.ndarray:
    """A temperature for each recording (N,), fitted on the half of the speakers that its own is not in.

    For models that come with no validation speakers of their own. ValueError where there are fewer than two speakers.
    """
    references, probabilities, speakers = np.asarray(references), np.asarray(probabilities), np.asarray(speakers)
    names, ids = np.unique(speakers, return_inverse=True)
    if len(names) < 2:
        raise ValueError("Cross-fitting a temperature needs at least two speakers.")
    half = np.random.default_rng(seed).permutation(len(names))[ids] % 2
    temperatures = np.empty(len(ids))
    for part in (0, 1):
        seen = half != part
        temperatures[~seen] = fit_temperature(references[seen], probabilities[seen], speakers[seen])
    return temperatures


# --- sets that hold the right label ---

COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def coverage_thresholds(right_by_group: Sequence[np.ndarray]) -> dict[str, float]:
    """By coverage, the least probability of a label in the sets that hold the right one so often, for the group of
    recordings that needs the widest sets. Split conformal prediction (Vovk et al. 2005; the score is that of Sadinle,
    Lei & Wasserman 2019).

    `right_by_group`: probabilities (N,) of the right labels, of recordings that the model did not learn from.
    """
    return {f"{coverage:g}": min(_threshold(right, coverage) for right in right_by_group) for coverage in COVERAGES}


def _threshold(right: np.ndarray, coverage: float) -> float:
    n_missed = int((1 - coverage) * (len(right) + 1) + 1e-9)
    return float(np.sort(right)[n_missed - 1]) if n_missed else 0.0
