"""How a benchmark's rows answer: as trained, or adapted first to the test's own recordings without their labels."""

from typing import Literal

import numpy as np
import torch

from modeling_edrl_mea import EdrlMeaForAudioClassification

from .embeddings import Embeddings
from .evaluation import predict

Way = Literal["plain", "test", "speaker"]
# What a row's name ends with: adapted to all recordings of a test, or anew to those of each speaker.
SUFFIXES: dict[Way, str] = {"plain": "", "test": " + adaptation", "speaker": " + adaptation by speaker"}


def row_without_adaptation(row: str) -> str:
    """The name of the row that has not adapted."""
    for suffix in SUFFIXES.values():
        if suffix and row.endswith(suffix):
            return row.removesuffix(suffix)
    return row


def probabilities_of(
    model: EdrlMeaForAudioClassification, statistics: torch.Tensor, way: Way = "plain", speakers=None
) -> np.ndarray:
    """Probabilities (N, C) from layer statistics (N, L+1, S'); the model stays as it was.

    `speakers` (N,): who is heard, for "speaker"; a speaker's recordings adapt as `model.adapt` would.
    """
    if way == "plain":
        n = len(statistics)
        return predict(model, Embeddings(statistics, torch.zeros(n, dtype=torch.long), [""] * n, torch.arange(n)))
    groups = np.zeros(len(statistics), int) if way == "test" else np.unique(speakers, return_inverse=True)[1]
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
