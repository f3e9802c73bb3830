"""Corrections of a classifier's logits, fitted to recordings: a bias for each class, and weights on an embedding.

Recordings from elsewhere mostly shift logits by a constant a class, and recordings without labels say by how much. With
offsets lᵢ (the logits as they are), biases b and weights W minimize the convex

    Σᵢ wᵢ (logsumexp(lᵢ + W eᵢ + b) − qᵢ·(lᵢ + W eᵢ + b)) + r/2 ‖W‖²

where qᵢ is the expected mix of classes for a recording without a label, and the label where there is one. The gradient
for b is the summed predictions less the summed qᵢ, so the mean prediction ends at the mix: what Sinkhorn's fixed point
finds too, here in a few Newton steps. With labels alone it is logistic regression that starts from what the model says.

What is left is told by the recordings themselves: a discriminant of their own, taught by these predictions.
"""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

SMALLEST_SHARE = 1e-3  # of an expected emotion: a share of nothing would take a bias without bound
SHARPNESS = 4.0  # of logits before their mean is compared with an uneven mix
LARGEST_STEP = 3.0  # of one Newton step, in units of the logits
SELF_TRAINING_PRIOR = 100  # recordings, against which those count that teach a discriminant of their own
RIDGE_SHARE = 1 / 40  # of the speech embedding's size: that discriminant's ridge
N_STEPS = 50  # three to six are usual
TOLERANCE = 1e-8  # of the mean prediction


def expected_mix(expected: str | Mapping[str, float] | None, labels: Sequence[str]) -> np.ndarray | None:
    """(C,) shares in the order of `labels`: equal ones for "balanced", None for an open mix.

    Labels that a mapping leaves out have what is left of 1 in equal parts.

    Raises ValueError: another word, unknown labels, shares that are no shares or do not add up to 1.
    """
    if expected is None:
        return None
    if isinstance(expected, str) and expected == "balanced":
        return np.full(len(labels), 1 / len(labels))
    if not isinstance(expected, Mapping) or not expected:
        raise ValueError(
            f'expected={expected!r}: give "balanced", shares such as {{{labels[0]!r}: 0.7}}, or None for an open mix.'
        )
    for name in expected:
        if name not in labels:
            near = difflib.get_close_matches(str(name), labels, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected names {name!r}, and the labels are {list(labels)}.{hint}")
    return _completed({name: _share(name, share) for name, share in expected.items()}, labels)


def _share(name: str, share) -> float:
    try:
        value = float(share)
    except (TypeError, ValueError):
        value = np.nan
    if not 0 <= value <= 1:
        raise ValueError(f"expected[{name!r}]={share!r} is no share; give a number from 0 to 1.")
    return value


def _completed(shares: Mapping[str, float], labels: Sequence[str]) -> np.ndarray:
    missing = [name for name in labels if name not in shares]
    rest = 1 - sum(shares.values())
    if rest < -0.01 or (not missing and rest > 0.01):
        hint = "" if rest < 0 else " Leave a label out, and it has the rest."
        raise ValueError(f"The expected shares {dict(shares)} add up to {1 - rest:g}, not to 1.{hint}")
    mix = np.array([shares.get(name, max(rest, 0) / max(len(missing), 1)) for name in labels])
    return mix / mix.sum()


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(-1)
    return largest + np.log(np.exp(logits - largest[..., None]).sum(-1))


def sharpness(mix: np.ndarray) -> float:
    """What logits are multiplied by before their mean prediction is compared with a mix.

    Sharp ones are close to answers, of which a mix is made: of a model that is never sure no mean probability reaches
    90%. An even mix is met by the mean probability as well, which varies less over a few recordings.
    """
    return 1.0 if np.ptp(mix) < 1e-6 else SHARPNESS


def class_biases(
    logits: np.ndarray,
    mix: np.ndarray,
    prior: float = 0.0,
    *,
    targets: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    center: np.ndarray | None = None,
    strength: float = 1.0,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Biases (C,), of mean zero, under which the mean (sharpened) prediction of `logits` (N, C) is `mix` (C,).

    Args:
        prior: so many further recordings are predicted as expected by the biases `center` (C,), zeros by default.
        targets: (N, C) what each recording is: `mix` by default, a row of 0 and 1 where its label is known.
        weights: (N,) how much each recording counts.
        strength: share of the way from `center` to the solution that is gone.
        start: (C,) biases near the result, where it was solved before.
    """
    center = np.zeros(len(mix)) if center is None else center
    mix = np.maximum(mix, SMALLEST_SHARE)
    mix = mix / mix.sum()
    weights = np.ones(len(logits)) if weights is None else weights
    wanted = np.broadcast_to(mix, logits.shape) if targets is None else targets
    sharp = sharpness(mix)
    rows = np.vstack([sharp * logits, np.log(mix) - sharp * center])
    if start is not None:
        start = sharp * (center + (start - center) / max(strength, 1e-3))
    ones = np.ones((len(rows), 1))
    (biases,) = _newton(rows, np.vstack([wanted, mix]), np.append(weights, prior), ones, np.zeros(1), start)
    biases = center + strength * (biases / sharp - center)
    return biases - biases.mean()


def label_correction(
    logits: np.ndarray, targets: np.ndarray, embeddings: np.ndarray, ridge: float, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(W (C, E), b (C,)) by recordings with labels: `targets` (N, C), `embeddings` (N, E) of unit mean square norm.

    In the coordinates of the recordings' own span, which an L2 penalty never leaves, so that few of them are fast.
    """
    own, spread, directions = np.linalg.svd(embeddings, full_matrices=False)
    kept = spread > 1e-6 * max(spread.max(initial=0), 1e-12)
    coordinates = (own * spread)[:, kept]
    design = np.hstack([np.ones((len(logits), 1)), coordinates])
    ridges = np.append(0.0, np.full(coordinates.shape[1], ridge))
    found = _newton(logits, targets, weights, design, ridges)
    return found[1:].T @ directions[kept], found[0]


def own_discriminant(speech: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights (C, S) of a linear discriminant of the recordings by their own predictions: speech embeddings (N, S) of
    about unit variance, `predicted` (N, C), `weights` (N,) how much each recording counts.

    A class of few recordings is drawn to the mean of all, as if one more of it were there.
    """
    rows, size = speech - np.average(speech, axis=0, weights=weights), speech.shape[1]
    shares, ridge = weights[:, None] * predicted, RIDGE_SHARE * size
    centers = (shares.T @ rows) / (shares.sum(0) + 1)[:, None]
    around = (rows - predicted @ centers) * np.sqrt(weights / weights.sum())[:, None]
    centers = centers - centers.mean(0)
    if len(rows) > size:
        return np.linalg.solve(around.T @ around + ridge * np.eye(size), centers.T).T
    inside = np.linalg.solve(around @ around.T + ridge * np.eye(len(rows)), around @ centers.T)  # Woodbury's identity
    return (centers - inside.T @ around) / ridge


def spread(logits: np.ndarray) -> float:
    """How far logits (N, C) differ between classes and recordings: root mean square without the means of both."""
    around = logits - logits.mean(1, keepdims=True)
    return float(np.sqrt(np.square(around - around.mean(0)).mean()))


def _newton(offsets, targets, weights, design, ridges, start=None) -> np.ndarray:
    """(F, C) coefficients of the design's (N, F) columns; the first column is the one of the biases."""
    total, n_classes = max(weights.sum(), 1e-12), offsets.shape[1]
    found = np.zeros((design.shape[1], n_classes))
    if start is not None:
        found[0] = start

    def objective(at):
        logits = offsets + design @ at
        return weights @ (log_sum_exp(logits) - (targets * logits).sum(1)) + (ridges @ np.square(at)).sum() / 2

    value = objective(found)
    for _ in range(N_STEPS):
        predicted = softmax(offsets + design @ found)
        slope = design.T @ (weights[:, None] * (predicted - targets)) + ridges[:, None] * found
        if np.abs(slope).max() <= TOLERANCE * total:
            break
        step = -np.linalg.solve(_curvature(predicted, weights, design, ridges, total), slope.ravel())
        step = step.reshape(found.shape) * min(1, LARGEST_STEP / np.abs(design @ step.reshape(found.shape)).max())
        while (reached := objective(found + step)) > value and np.abs(step).max() > TOLERANCE:
            step = step / 2
        found, value = found + step, reached
    return found


def _curvature(predicted, weights, design, ridges, total) -> np.ndarray:
    """(F·C, F·C) second derivatives; the same bias for every class changes nothing, so that direction is filled."""
    n_classes = predicted.shape[1]
    spread = weights * (predicted.T[:, None] * (np.eye(n_classes)[..., None] - predicted.T))  # (C, C, N)
    curvature = ((design.T * spread[:, :, None]) @ design).transpose(2, 0, 3, 1)  # (F, C, F, C)
    size = design.shape[1] * n_classes
    curvature = curvature.reshape(size, size) + np.diag(np.repeat(ridges, n_classes))
    curvature[:n_classes, :n_classes] += total / n_classes + 1e-9 * total * np.eye(n_classes)
    return curvature
