"""Adaptation on the fly: class biases of a running call or device, learned window by window."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .configuration_edrl_mea import EdrlMeaConfig
from .correction import class_biases, expected_mix

PRIOR = EdrlMeaConfig.adaptation_prior  # windows count as recordings do


class Adapter:
    """Learns class biases on line: `learn` takes the logits of a window and returns them corrected.

    Gives [`TimelineStream`] what `model.adapt` gives a model; what it learned can be saved and restored. The time for a
    window does not grow with the length of the call: the latest `memory` windows decide, without forgetting all alike.

    Args:
        labels: the model's, `model.config.labels`.
        expected: as `model.adapt` takes it.
        prior: windows that no bias counts for; `speaker_prior`: that everybody's biases count for against a speaker's.
        half_life: windows after which one counts half; None: nothing is forgotten.
        memory: windows remembered.

    Raises ValueError for an `expected` that does not fit, and for a memory or half-life that is none.
    """

    def __init__(
        self,
        labels: Sequence[str],
        expected: str | Mapping[str, float] = "balanced",
        prior: float = PRIOR,
        speaker_prior: float = EdrlMeaConfig.speaker_prior,
        half_life: float | None = None,
        memory: int = 256,
    ):
        self.labels, self.mix = list(labels), expected_mix(expected, list(labels))
        if self.mix is None:
            raise ValueError('An Adapter needs a mix to adapt to: expected="balanced", or shares by label.')
        if memory < 1 or (half_life is not None and not half_life > 0):
            raise ValueError(f"memory={memory}, half_life={half_life}: give at least one window, and above 0.")
        self.strength = EdrlMeaConfig.balanced_strength if expected == "balanced" else 1.0
        self.expected, self.prior, self.speaker_prior = expected, prior, speaker_prior
        self.half_life, self.memory = half_life, memory
        self.logits = np.zeros((0, len(self.labels)))
        self.speakers: list[str | None] = []
        self.biases, self.speaker_biases = np.zeros(len(self.labels)), {}

    def learn(self, logits: Sequence[float], speaker: str | None = None) -> np.ndarray:
        """Corrected logits (C,) of a window that counts from now on; logits that are not finite are not learned."""
        logits = np.asarray(logits, np.float64)
        if logits.shape != (len(self.labels),):
            raise ValueError(
                f"logits of shape {logits.shape}; an Adapter of {self.labels} takes ({len(self.labels)},)."
            )
        if np.isfinite(logits).all():
            self.logits = np.vstack([self.logits[-self.memory + 1 :] if self.memory > 1 else self.logits[:0], logits])
            self.speakers = [*self.speakers, speaker][-self.memory :]
            self._solve(speaker)
        return self.correct(logits, speaker)

    def correct(self, logits: Sequence[float], speaker: str | None = None) -> np.ndarray:
        """Logits (C,) or (N, C) corrected by what is known so far."""
        return np.asarray(logits) + self.speaker_biases.get(speaker, self.biases)

    def _solve(self, speaker: str | None) -> None:
        weights = np.ones(len(self.logits))
        if self.half_life is not None:
            weights = 0.5 ** (np.arange(len(weights))[::-1] / self.half_life)
        settings = {"weights": weights, "strength": self.strength, "start": self.biases}
        self.biases = class_biases(self.logits, self.mix, self.prior, **settings)
        if speaker is None:
            return
        own = np.array([name == speaker for name in self.speakers])
        self.speaker_biases[speaker] = class_biases(
            self.logits[own],
            self.mix,
            self.speaker_prior,
            weights=weights[own],
            center=self.biases,
            strength=self.strength,
            start=self.speaker_biases.get(speaker, self.biases),
        )

    def save(self, path: str | os.PathLike) -> None:
        """Everything that it knows, as JSON."""
        content = {name: getattr(self, name) for name in SETTINGS}
        content |= {"logits": self.logits.tolist(), "speakers": self.speakers, "biases": self.biases.tolist()}
        content["speaker_biases"] = [[name, values.tolist()] for name, values in self.speaker_biases.items()]
        Path(path).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Adapter":
        """What `save` wrote."""
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        adapter = cls(**{name: content[name] for name in SETTINGS})
        adapter.logits = np.array(content["logits"], np.float64).reshape(-1, len(adapter.labels))
        adapter.speakers, adapter.biases = content["speakers"], np.array(content["biases"])
        adapter.speaker_biases = {name: np.array(values) for name, values in content["speaker_biases"]}
        return adapter


SETTINGS = ("labels", "expected", "prior", "speaker_prior", "half_life", "memory")
