"""A model's predictions for embedded recordings, and how right they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from modeling_edrl_mea import EdrlMeaForAudioClassification
from train.data.embeddings import ROWS, Embeddings

from .calibration import with_temperature
from .metrics import confusion_by_speaker


@dataclass
class Predictions:
    """For N recordings: class ids (N,), a model's probabilities (N, C), speakers (N,), names (N,) or None."""

    references: np.ndarray
    probabilities: np.ndarray
    speakers: np.ndarray
    names: np.ndarray | None = None  # of the recordings, to pair two models' predictions

    def __post_init__(self):
        self.references, self.probabilities = np.asarray(self.references), np.asarray(self.probabilities, np.float64)
        self.speakers = np.asarray(self.speakers)

    def __len__(self) -> int:
        return len(self.references)

    def calibrated(self, temperature: float | np.ndarray) -> "Predictions":
        """The same predictions at a temperature, or at one for each recording (N,)."""
        return replace(self, probabilities=with_temperature(self.probabilities, temperature))

    def rows(self, rows: np.ndarray) -> "Predictions":
        names = self.names[rows] if self.names is not None else None
        return Predictions(self.references[rows], self.probabilities[rows], self.speakers[rows], names)

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """The predictions of several folds as one."""
        fields = [
            [part.references for part in parts],
            [part.probabilities for part in parts],
            [part.speakers for part in parts],
        ]
        names = None if any(part.names is None for part in parts) else np.concatenate([part.names for part in parts])
        return cls(*map(np.concatenate, fields), names)

    def confusion(self) -> tuple[np.ndarray, list]:
        """Confusion matrices (speakers, C, C), rows references, and the speakers in their order."""
        predictions = self.probabilities.argmax(1)
        return confusion_by_speaker(self.references, predictions, self.speakers, self.probabilities.shape[1])


@torch.no_grad()
def predict(model: EdrlMeaForAudioClassification, data: Embeddings) -> np.ndarray:
    """Probabilities (N, C)."""
    model.eval()
    parts = [model(layer_statistics=part.to(model.device)).logits for part in data.layer_statistics.split(ROWS)]
    return torch.cat(parts).float().softmax(-1).cpu().numpy()


def evaluate(model: EdrlMeaForAudioClassification, data: Embeddings) -> Predictions:
    return Predictions(data.labels.numpy(), predict(model, data), np.array(data.speakers))


# --- adaptation ---

AdaptationMode = Literal["plain", "test", "speaker"]
# What a row's name ends with: adapted to all recordings of a test, or anew to those of each speaker.
SUFFIXES: dict[AdaptationMode, str] = {"plain": "", "test": " + adaptation", "speaker": " + adaptation by speaker"}


def row_without_adaptation(row: str) -> str:
    """The name of the row that has not adapted."""
    for suffix in SUFFIXES.values():
        if suffix and row.endswith(suffix):
            return row.removesuffix(suffix)
    return row


def probabilities_of(
    model: EdrlMeaForAudioClassification, statistics: torch.Tensor, mode: AdaptationMode = "plain", speakers=None
) -> np.ndarray:
    """Probabilities (N, C) from layer statistics (N, L+1, S'); the model stays as it was.

    `speakers` (N,): who speaks, for "speaker"; a speaker's recordings adapt as `model.adapt` would.
    """
    if mode == "plain":
        n = len(statistics)
        return predict(model, Embeddings(statistics, torch.zeros(n, dtype=torch.long), [""] * n, torch.arange(n)))
    groups = np.zeros(len(statistics), int) if mode == "test" else np.unique(speakers, return_inverse=True)[1]
    probabilities = np.empty((len(statistics), model.config.num_labels))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        probabilities[rows] = _adapted(model, statistics[torch.from_numpy(rows)])
    return probabilities


def _adapted(model: EdrlMeaForAudioClassification, statistics: torch.Tensor) -> np.ndarray:
    speech = model.edrl_mea.speech_embedding
    before = {name: tensor.clone() for name, tensor in speech.state_dict().items()}
    try:
        speech.adapt(statistics.to(model.device), model.config.adaptation_prior)
        return probabilities_of(model, statistics)
    finally:
        speech.load_state_dict(before)
