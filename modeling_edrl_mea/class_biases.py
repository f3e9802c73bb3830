"""Class biases: one number a class, added to the logits so that the mean prediction meets an expected mix.

Recordings from elsewhere mostly shift a classifier's logits by a constant a class, and unlabelled recordings of them
say by how much. The biases b minimise the convex

    Σᵢ wᵢ (logsumexp(lᵢ + b) − qᵢ·b),

whose gradient is the summed predictions less the summed targets qᵢ: the expected mix for a recording without a label,
the label itself where there is one. (A fixed point of Sinkhorn's kind has the same solution; Newton's steps reach it in
a few.) A prior counts as so many further recordings that are predicted as expected without any bias.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .suggestions import nearest_hint

SMALLEST_SHARE = 1e-3  # of an expected emotion: a share of nothing would take a bias without bound
LARGEST_STEP = 3.0  # of one Newton step, in units of the logits
N_STEPS = 50  # three to six are usual
TOLERANCE = 1e-9  # of the mean prediction


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
            raise ValueError(f"expected names {name!r}, and the labels are {list(labels)}.{nearest_hint(name, labels)}")
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
        hint = "" if rest < 0 else " Leave one label out, and it has the rest."
        raise ValueError(f"The expected shares {dict(shares)} add up to {1 - rest:g}, not to 1.{hint}")
    mix = np.array([shares.get(name, max(rest, 0) / max(len(missing), 1)) for name in labels])
    return mix / mix.sum()


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def class_biases(
    logits: np.ndarray,
    mix: np.ndarray,
    prior: float = 0.0,
    *,
    targets: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    center: np.ndarray | None = None,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """The biases (C,), of mean zero, float64.

    Args:
        logits: (N, C) without any bias; N may be 0, which leaves the prior alone to decide.
        mix: (C,) expected shares.
        prior: recordings that `center` (C,), the biases where there is no evidence, counts for; zeros by default.
        targets: (N, C) what each recording is: `mix` by default, a row of 0 and 1 where its label is known.
        weights: (N,) how much each recording counts.
        start: (C,) biases to start from, near the solution where it was solved before.
    """
    mix = np.maximum(mix, SMALLEST_SHARE)
    mix = mix / mix.sum()
    weights = np.ones(len(logits)) if weights is None else weights
    wanted = prior * mix + (weights.sum() * mix if targets is None else weights @ targets)
    own = np.log(mix) - (0 if center is None else center)
    rows, weights = np.vstack([logits, own]), np.append(weights, prior)
    biases = np.zeros(len(mix)) if start is None else start
    for _ in range(N_STEPS):
        step = _newton_step(rows + biases, weights, wanted)
        if step is None:
            break
        biases = _descended(biases, step, rows, weights, wanted)
    return biases - biases.mean()


def _newton_step(logits, weights, wanted) -> np.ndarray | None:
    """None where the mean prediction is as wanted."""
    predicted, total = softmax(logits), max(weights.sum(), 1e-12)
    weighted = weights[:, None] * predicted
    missing = wanted - weighted.sum(0)
    if np.abs(missing).max() <= TOLERANCE * total:
        return None
    # The ones take away the direction that changes nothing: the same bias for every class.
    curvature = (
        np.diag(weighted.sum(0)) - weighted.T @ predicted + total * (1 / len(wanted) + 1e-9 * np.eye(len(wanted)))
    )
    step = np.linalg.solve(curvature, missing)
    return step * min(1, LARGEST_STEP / np.abs(step).max())


def _descended(biases, step, rows, weights, wanted) -> np.ndarray:
    """One step down, halved until it is one."""

    def objective(at):
        return weights @ _log_sum_exp(rows + at) - wanted @ at

    before = objective(biases)
    while np.abs(step).max() > TOLERANCE and objective(biases + step) > before:
        step = step / 2
    return biases + step


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(-1)
    return largest + np.log(np.exp(logits - largest[..., None]).sum(-1))
