"""Temperature scaling (Guo et al. 2017): one number that makes a model as sure as it is right."""

import numpy as np
from scipy.optimize import minimize_scalar

TEMPERATURES = (0.05, 20.0)  # searched between; beyond them probabilities are one-hot or flat
SMALLEST = 1e-12  # probability: float32 softmax can say 0, whose logarithm no temperature moves


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


def fit_temperature(references, probabilities) -> float:
    """The temperature under which held-out references (N,) are likeliest given probabilities (N, C).

    Fit it on speakers that neither training nor the test has: on training speakers a model is right too often.
    ValueError where there is no recording.
    """
    references, probabilities = np.asarray(references), np.asarray(probabilities)
    if not len(references):
        raise ValueError("A temperature needs recordings to be fitted on, and there are none.")

    def loss(log_temperature):
        return negative_log_likelihood(references, with_temperature(probabilities, np.exp(log_temperature)))

    # The loss is unimodal in 1/T, so in log T too.
    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def cross_fitted_temperatures(references, probabilities, speakers, seed: int = 0) -> np.ndarray:
    """A temperature for each recording (N,), fitted on the half of the speakers that its own is not in.

    For models that come with no validation speakers of their own. ValueError where there are fewer than two speakers.
    """
    names, ids = np.unique(np.asarray(speakers), return_inverse=True)
    if len(names) < 2:
        raise ValueError("Cross-fitting a temperature needs at least two speakers.")
    half = np.random.default_rng(seed).permutation(len(names))[ids] % 2
    temperatures = np.empty(len(ids))
    for part in (0, 1):
        others = half != part
        temperatures[~others] = fit_temperature(np.asarray(references)[others], np.asarray(probabilities)[others])
    return temperatures
