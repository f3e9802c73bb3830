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
from dataclasses import asdict, dataclass, field

import numpy as np

SMALLEST_SHARE = 1e-3  # of an expected emotion: a share of nothing would take a bias without bound
SHARPNESS = 4.0  # of logits before their mean is compared with an uneven mix
LARGEST_STEP = 3.0  # of one Newton step, in units of the logits
SELF_TRAINING_PRIOR = 100  # recordings, against which those count that teach a discriminant of their own
LABELED_WEIGHT = 32.0  # recordings without a label that one with a label counts for in the mean of its class there
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


def own_discriminant(
    speech: np.ndarray, predicted: np.ndarray, weights: np.ndarray, weights_in_means: np.ndarray
) -> np.ndarray:
    """Weights (C, S) of a linear discriminant of the recordings by their own predictions: speech embeddings (N, S) of
    about unit variance, `predicted` (N, C), `weights` (N,) how much each recording counts, and in its class's mean.

    A class of few recordings is drawn to the mean of all, as if one more of it were there.
    """
    rows, size = speech - np.average(speech, axis=0, weights=weights), speech.shape[1]
    shares, ridge = weights_in_means[:, None] * predicted, RIDGE_SHARE * size
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


# --- all of it together ---


@dataclass
class AdaptationReport:
    """What an adaptation was given, found and did; JSON-able by `to_dict`, and kept in the saved model's config."""

    n_recordings: int  # that were used
    n_left_out: int = 0  # silent or shorter than 0.2 s
    evidence: float = 0.0  # recordings that they count for: copies and short ones count less
    n_speakers: int = 0
    n_labeled: int = 0
    added_labels: list[str] = field(default_factory=list)
    expected: dict[str, float] | None = None  # shares by label; None: left open
    before: dict[str, float] = field(default_factory=dict)  # predicted mix, shares by label
    after: dict[str, float] = field(default_factory=dict)
    biases: dict[str, float] = field(default_factory=dict)  # the shift found, in logits
    strength: dict[str, float] = field(default_factory=dict)  # of each part: evidence / (evidence + its prior)

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        given = f"{self.n_recordings} recordings"
        given += f" of {self.n_speakers} speakers" if self.n_speakers else ""
        given += f", {self.n_labeled} with a label" if self.n_labeled else ""
        given += f"; {self.n_left_out} silent or too short" if self.n_left_out else ""
        parts = ", ".join(f"{name} {share:.0%}" for name, share in self.strength.items()) or "nothing"
        lines = [f"Adapted to {given}. Strength: {parts}."]
        if self.added_labels:
            lines.append(f"New labels: {', '.join(self.added_labels)}.")
        width = max(map(len, self.after), default=0)
        lines.append(f"{'':{width}}  before  after  expected   bias")
        for name in self.after:
            expected = f"{self.expected[name]:9.0%}" if self.expected else f"{'open':>9}"
            before = f"{self.before[name]:7.0%}" if name in self.before else f"{'new':>7}"
            lines.append(f"{name:{width}} {before} {self.after[name]:6.0%} {expected} {self.biases[name]:+6.2f}")
        return "\n".join(lines)


@dataclass
class Correction:
    """What was found: labels and speakers in their order, and the arrays of [`OutputAdaptation`]."""

    labels: list[str]
    speakers: list[str]
    biases: np.ndarray
    weights: np.ndarray
    speech_weights: np.ndarray
    speaker_biases: np.ndarray
    report: AdaptationReport | None = None

    def apply(self, evidence: "Evidence", speakers: Sequence | None = None) -> np.ndarray:
        """(N, C) logits of recordings as the model sees them."""
        corrected = _with_new_labels(evidence.logits, len(self.labels)) + self.biases
        corrected += evidence.embedding @ self.weights.T + evidence.speech @ self.speech_weights.T
        if speakers is not None and self.speakers:
            places = {name: place for place, name in enumerate(self.speakers)}
            rows = np.array([places.get(str(name), -1) for name in speakers])
            corrected += np.vstack([self.speaker_biases, np.zeros_like(self.biases)])[rows]
        return corrected


@dataclass
class Evidence:
    """N recordings as a model sees them: trained logits (N, C), label embedding in blocks (N, E_b), speech embedding
    (N, S), weights (N,) of at most 1, label and speaker of each or None."""

    logits: np.ndarray
    blocks: list[np.ndarray]
    speech: np.ndarray
    weights: np.ndarray
    labels: list[str | None]
    speakers: list[str] | None = None

    @property
    def embedding(self) -> np.ndarray:
        return np.concatenate(self.blocks, axis=1)


def correct(evidence: Evidence, config, mix, kept_weights: np.ndarray | None = None) -> Correction:
    """The correction by the evidence, each part as strong as the config's priors let it be.

    Args:
        mix: expected shares by label as [`expected_mix`] takes them.
        kept_weights: (C, E) of labels learned earlier; they stay where there are no labels now.
    """
    new = [name for name in dict.fromkeys(evidence.labels) if name is not None and name not in config.labels]
    labels = [*config.labels, *new]
    known = [row for row, name in enumerate(evidence.labels) if name is not None]
    logits = _with_new_labels(evidence.logits, len(labels))
    targets = np.zeros_like(logits)
    targets[known, [labels.index(evidence.labels[row]) for row in known]] = 1
    weights = np.zeros((len(labels), evidence.embedding.shape[1]))
    biases = np.zeros(len(labels))
    if kept_weights is not None:
        weights[: len(kept_weights)] = kept_weights
    if known:
        weights, biases = _by_labels(evidence, logits, targets, known, config)
    logits = logits + evidence.embedding @ weights.T
    strength = config.balanced_strength if mix == "balanced" else 1.0
    mix = expected_mix(mix, labels)
    found = Correction(labels, [], biases, weights, np.zeros((len(labels), evidence.speech.shape[1])), np.zeros(0))
    if mix is not None:
        targets[np.setdiff1d(np.arange(len(logits)), known)] = mix
    _find_biases(found, evidence, logits, targets, mix, biases, strength, config)
    if mix is not None and config.self_training:
        _teach_itself(found, evidence, logits, targets[known], known, strength, config)
        logits = logits + evidence.speech @ found.speech_weights.T
        _find_biases(found, evidence, logits, targets, mix, biases, strength, config)
    found.report = _report(evidence, found, mix, strength, len(known), config)
    return found


def _find_biases(found: Correction, evidence: Evidence, logits, targets, mix, center, strength, config) -> None:
    """Under which the mean prediction is the mix, for everybody and by speaker; those of the labels for an open mix."""
    if mix is not None:
        settings = {"targets": targets, "weights": evidence.weights, "center": center, "strength": strength}
        found.biases = class_biases(logits, mix, config.adaptation_prior, **settings)
    of_speakers = _by_speaker(evidence, logits, targets, mix, found.biases, strength, config)
    found.speakers, found.speaker_biases = of_speakers


def _teach_itself(found: Correction, evidence: Evidence, logits, known_targets, known, strength, config) -> None:
    """A discriminant by what is predicted so far, its logits spread as far as the model's, times its share."""
    predicted = softmax(found.apply(evidence, evidence.speakers))
    predicted[known] = known_targets
    weights = own_discriminant(evidence.speech, predicted, evidence.weights, _weights_in_means(evidence))
    share = _share_of_teaching(evidence, strength, config)
    found.speech_weights = weights * (share * spread(logits) / max(spread(evidence.speech @ weights.T), 1e-9))


def _weights_in_means(evidence: Evidence) -> np.ndarray:
    """(N,) Those with a label count for more, since their class is certain, and together for at most what others do."""
    known = np.array([name is not None for name in evidence.labels])
    labeled, others = evidence.weights[known].sum(), evidence.weights[~known].sum()
    return evidence.weights * np.where(known, np.clip(others / max(labeled, 1e-12), 1, LABELED_WEIGHT), 1)


def _share_of_teaching(evidence: Evidence, strength: float, config) -> float:
    """What a discriminant of their own is worth, against the model: more where labels make its means more certain."""
    total = float(evidence.weights.sum())
    certain = float(_weights_in_means(evidence).sum()) / max(total, 1e-12)
    return round(strength * config.self_training * strength_of(total, SELF_TRAINING_PRIOR) * certain, 3)


def _with_new_labels(logits: np.ndarray, n_labels: int) -> np.ndarray:
    missing = n_labels - logits.shape[1]
    return np.pad(logits - log_sum_exp(logits)[:, None], ((0, 0), (0, missing))) if missing else logits


def _by_labels(evidence: Evidence, logits, targets, known, config) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases by the recordings with a label, beside one that the model predicts rightly as it is: at the
    training data's mean, which keeps new labels from being predicted everywhere."""
    scales = [np.sqrt(np.square(block[known]).sum(1).mean() * len(evidence.blocks)) for block in evidence.blocks]
    columns = np.repeat(1 / np.maximum(scales, 1e-6), [block.shape[1] for block in evidence.blocks])
    rows = np.vstack([evidence.embedding[known] * columns, np.zeros(len(columns))])
    n_trained = evidence.logits.shape[1]
    typical = logits[known].mean(0)
    usual = np.append(softmax(typical[:n_trained]), np.zeros(len(typical) - n_trained))
    found = label_correction(
        np.vstack([logits[known], typical]),
        np.vstack([targets[known], usual]),
        rows,
        config.label_ridge,
        np.append(evidence.weights[known], config.adaptation_prior),
    )
    return found[0] * columns, found[1]


def _by_speaker(evidence: Evidence, logits, targets, mix, biases, strength, config) -> tuple[list[str], np.ndarray]:
    if evidence.speakers is None or mix is None:
        return [], np.zeros((0, len(biases)))
    speakers = list(dict.fromkeys(evidence.speakers))
    found = np.zeros((len(speakers), len(biases)))
    for place, name in enumerate(speakers):
        rows = np.array([other == name for other in evidence.speakers])
        own = class_biases(
            logits[rows],
            mix,
            config.speaker_prior,
            targets=targets[rows],
            weights=evidence.weights[rows],
            center=biases,
            strength=strength,
            start=biases,
        )
        found[place] = own - biases
    return speakers, found


def _report(evidence: Evidence, found: Correction, mix, strength, n_labeled: int, config) -> AdaptationReport:
    n_trained = evidence.logits.shape[1]
    names, total = found.labels, float(evidence.weights.sum())
    before = softmax(evidence.logits).mean(0)
    after = softmax(found.apply(evidence, evidence.speakers)).mean(0)
    strengths = {}
    if mix is not None:
        strengths["biases"] = strength * strength_of(total, config.adaptation_prior)
        strengths["self-training"] = _share_of_teaching(evidence, strength, config)
    if found.speakers:
        strengths["speakers"] = strength * strength_of(total / len(found.speakers), config.speaker_prior)
    if n_labeled:
        strengths["labels"] = strength_of(n_labeled, config.adaptation_prior)

    def by_label(values):
        return {name: round(float(value), 4) for name, value in zip(names, values, strict=False)}

    return AdaptationReport(
        n_recordings=len(evidence.logits),
        evidence=round(total, 2),
        n_speakers=len(found.speakers),
        n_labeled=n_labeled,
        added_labels=names[config.n_trained_labels :],
        expected=None if mix is None else by_label(mix),
        before=by_label(before[:n_trained]),
        after=by_label(after),
        biases=by_label(found.biases),
        strength=strengths,
    )


def strength_of(evidence: float, prior: float) -> float:
    return round(evidence / max(evidence + prior, 1e-12), 3)
