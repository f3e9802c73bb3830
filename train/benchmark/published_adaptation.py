"""Published test-time adaptation above a frozen backbone, to compare `adapt` with: each from unlabeled recordings of a
test to logits (N, C) for them. Where a method adapts normalization layers, these are scale and shift of the speech
embedding, the one normalization that the heads have."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

STEPS = 10  # of gradient descent on all recordings of a test
SAR_RADIUS = 0.05  # of SAR's neighborhood, as published
ENTROPY_MARGIN = 0.4  # of log C, above which SAR and EATA do not learn from a recording, as published


def standardized(model, statistics: torch.Tensor, prior: float) -> torch.Tensor:
    """Mean and deviation of the test's statistics, those of training counting for `prior` recordings (AdaBN, Li et al.
    2017; the prior after Schneider et al. 2020)."""
    speech, count = model.edrl_mea.speech_embedding, len(statistics)
    speech.adapt(statistics, torch.ones(count), count / (count + prior))
    try:
        return _logits(model, statistics).detach()
    finally:
        speech.forget_adaptation()


def tent(model, statistics: torch.Tensor, rate: float) -> torch.Tensor:
    """Entropy minimization (Wang et al. 2021)."""
    return _descended(model, statistics, rate, lambda logits, _: _entropy(logits).mean())


def eata(model, statistics: torch.Tensor, rate: float) -> torch.Tensor:
    """Entropy of sure recordings, the surest most, held near where it started (Niu et al. 2022)."""

    def loss(logits, parameters):
        entropy, margin = _entropy(logits), ENTROPY_MARGIN * np.log(logits.shape[1])
        weights = (torch.exp(margin - entropy) * (entropy < margin)).detach()
        return (weights * entropy).mean() + sum((part - start).square().mean() for part, start in parameters)

    return _descended(model, statistics, rate, loss)


def sar(model, statistics: torch.Tensor, rate: float) -> torch.Tensor:
    """Entropy of sure recordings, at the worst point nearby (Niu et al. 2023)."""

    def loss(logits, _):
        entropy = _entropy(logits)
        sure = (entropy < ENTROPY_MARGIN * np.log(logits.shape[1])).detach()
        return (entropy * sure).sum() / sure.sum().clamp_min(1)

    return _descended(model, statistics, rate, loss, SAR_RADIUS)


def information_maximization(model, statistics: torch.Tensor, rate: float) -> torch.Tensor:
    """Entropy of each prediction less that of their mean (SHOT, Liang et al. 2020)."""

    def loss(logits, _):
        mean = logits.softmax(-1).mean(0)
        return _entropy(logits).mean() + (mean * mean.clamp_min(1e-12).log()).sum()

    return _descended(model, statistics, rate, loss)


@torch.no_grad()
def lame(model, statistics: torch.Tensor, neighbors: int) -> torch.Tensor:
    """Predictions of neighbors agree (Boudiaf et al. 2022)."""
    own = _logits(model, statistics).log_softmax(-1)
    near = torch.nn.functional.normalize(model.edrl_mea.speech_embedding(statistics), dim=-1)
    similarity = (near @ near.T).fill_diagonal_(-2)
    affinity = torch.zeros_like(similarity)
    affinity.scatter_(1, similarity.topk(min(neighbors, len(near) - 1)).indices, 1.0)
    affinity = (affinity + affinity.T) / 2
    predicted = own.exp()
    for _ in range(100):
        predicted = (own + affinity @ predicted).softmax(-1)
    return predicted.clamp_min(1e-12).log()


@torch.no_grad()
def t3a(model, statistics: torch.Tensor, kept: int) -> torch.Tensor:
    """Classifier of prototypes: means of the `kept` surest recordings of each class (Iwasawa & Matsuo 2021)."""
    output = model.edrl_mea(layer_statistics=statistics)
    logits = model.trained_logits(output)
    features = torch.nn.functional.normalize(torch.cat(model.label_embedding(output), -1), dim=-1)
    entropy, found = _entropy(logits), logits.argmax(-1)
    prototypes = []
    for label in range(logits.shape[1]):
        rows = (found == label).nonzero()[:, 0]
        rows = rows[entropy[rows].argsort()[:kept]] if len(rows) else logits[:, label].argmax()[None]
        prototypes.append(features[rows].mean(0))
    return features @ torch.nn.functional.normalize(torch.stack(prototypes), dim=-1).T


# Each with the settings among which cross-validation chooses.
METHODS: Mapping[str, tuple[Callable, tuple]] = {
    "standardized (AdaBN)": (standardized, (0.0, 3.0, 16.0, 64.0, 256.0)),
    "TENT": (tent, (1e-4, 1e-3, 1e-2)),
    "EATA": (eata, (1e-4, 1e-3, 1e-2)),
    "SAR": (sar, (1e-4, 1e-3, 1e-2)),
    "SHOT-IM": (information_maximization, (1e-4, 1e-3, 1e-2)),
    "LAME": (lame, (1, 3, 5, 10)),
    "T3A": (t3a, (5, 20, 50, 100)),
}


def _logits(model, statistics: torch.Tensor) -> torch.Tensor:
    return model.trained_logits(model.edrl_mea(layer_statistics=statistics)).float()


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def _descended(model, statistics, rate, loss, radius: float = 0.0) -> torch.Tensor:
    """Logits after so many steps of scale and shift of the standardized statistics down a loss."""
    speech = model.edrl_mea.speech_embedding
    rows = (statistics - speech.mean) / speech.scale
    start = [torch.ones_like(speech.mean), torch.zeros_like(speech.mean)]
    scale, shift = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.Adam([scale, shift], lr=rate)

    def logits():
        return _logits(model, (rows * scale + shift) * speech.scale + speech.mean)

    def value():
        return loss(logits(), list(zip((scale, shift), start, strict=True)))

    for _ in range(STEPS):
        optimizer.zero_grad()
        value().backward()
        if radius:
            _at_the_worst_nearby((scale, shift), radius, optimizer, value)
        optimizer.step()
    return logits().detach()


def _at_the_worst_nearby(parameters, radius: float, optimizer, value) -> None:
    """Leave the gradients of the point within `radius` where the loss is highest (sharpness-aware minimization)."""
    norm = torch.stack([part.grad.norm() for part in parameters]).norm().clamp_min(1e-12)
    moves = [radius * part.grad / norm for part in parameters]
    with torch.no_grad():
        for part, move in zip(parameters, moves, strict=True):
            part += move
    optimizer.zero_grad()
    value().backward()
    with torch.no_grad():
        for part, move in zip(parameters, moves, strict=True):
            part -= move
