"""A model's predictions for embedded recordings, and how right they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from modeling_edrl_mea import EdrlMeaForAudioClassification
from modeling_edrl_mea.adaptation import evidence_of, standardized
from modeling_edrl_mea.correction import correct, softmax
from modeling_edrl_mea.embeddings import ROWS, Embeddings
from modeling_edrl_mea.targets import IGNORED

from .calibration import with_temperature
from .metrics import confusion_by_speaker


@dataclass
class Predictions:
    """For N recordings: class ids (N,), -100 without an emotion, a model's probabilities (N, C), speakers (N,), names
    (N,) or None; and ratings, NaN where missing, with the attributes that a model predicts, both (N, A) or None."""

    references: np.ndarray
    probabilities: np.ndarray
    speakers: np.ndarray
    names: np.ndarray | None = None  # of the recordings, to pair two models' predictions
    ratings: np.ndarray | None = None
    attributes: np.ndarray | None = None

    def __post_init__(self):
        self.references, self.probabilities = np.asarray(self.references), np.asarray(self.probabilities, np.float64)
        self.speakers = np.asarray(self.speakers)

    def __len__(self) -> int:
        return len(self.references)

    def calibrated(self, temperature: float | np.ndarray) -> "Predictions":
        """The same predictions at a temperature, or at one for each recording (N,)."""
        return replace(self, probabilities=with_temperature(self.probabilities, temperature))

    def rows(self, rows: np.ndarray) -> "Predictions":
        more = (part if part is None else part[rows] for part in (self.names, self.ratings, self.attributes))
        return Predictions(self.references[rows], self.probabilities[rows], self.speakers[rows], *more)

    def labeled(self) -> "Predictions":
        """Those of the recordings that have an emotion."""
        has_label = self.references != IGNORED
        return self if has_label.all() else self.rows(has_label)

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """The predictions of several folds as one."""
        fields = [
            [part.references for part in parts],
            [part.probabilities for part in parts],
            [part.speakers for part in parts],
        ]
        more = [[part.names for part in parts], [part.ratings for part in parts], [part.attributes for part in parts]]
        joined = (None if any(one is None for one in some) else np.concatenate(some) for some in more)
        return cls(*map(np.concatenate, fields), *joined)

    def confusion(self) -> tuple[np.ndarray, list]:
        """Confusion matrices (speakers, C, C), rows references, and the speakers in their order."""
        predictions = self.probabilities.argmax(1)
        return confusion_by_speaker(self.references, predictions, self.speakers, self.probabilities.shape[1])


def predict(model: EdrlMeaForAudioClassification, data: Embeddings) -> np.ndarray:
    """Probabilities (N, C)."""
    return outputs(model, data)[0]


@torch.no_grad()
def outputs(model: EdrlMeaForAudioClassification, data: Embeddings) -> tuple[np.ndarray, np.ndarray | None]:
    """(probabilities (N, C), attributes (N, A) or None); without emotions C is 0."""
    model.eval()
    parts = [model(layer_statistics=part.to(model.device)) for part in data.layer_statistics.split(ROWS)]
    probabilities = torch.cat([part.logits for part in parts]).float().softmax(-1).cpu().numpy()
    if not model.config.n_attributes:
        return probabilities, None
    attributes = torch.cat([part.attributes for part in parts]).cpu().numpy()
    return probabilities[:, :0] if model.config.is_regression else probabilities, attributes


def attributes_by(model: EdrlMeaForAudioClassification, statistics: torch.Tensor) -> np.ndarray | None:
    """Attributes (N, A) from layer statistics (N, L+1, S'); None of a model that rates none."""
    return outputs(model, _unlabeled(statistics))[1]


def _unlabeled(statistics: torch.Tensor) -> Embeddings:
    n = len(statistics)
    return Embeddings(statistics, torch.full((n,), IGNORED), [""] * n, torch.arange(n))


def evaluate(model: EdrlMeaForAudioClassification, data: Embeddings) -> Predictions:
    probabilities, attributes = outputs(model, data)
    ratings = None if attributes is None or data.attributes is None else data.attributes.numpy()
    more = {"ratings": ratings, "attributes": attributes}
    return Predictions(data.labels.numpy(), probabilities, np.array(data.speakers), **more)


# --- adaptation ---

AdaptationMode = Literal["plain", "test", "speaker"]
# What a row's name ends with: adapted to all recordings of a test, or also to each of its speakers.
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

    Adapted as `model.adapt` does, to an equal mix; `speakers` (N,): who speaks, for "speaker".
    """
    if mode == "plain":
        return predict(model, _unlabeled(statistics))
    with standardized(model, statistics, np.ones(len(statistics)), "balanced"):
        evidence = evidence_of(model, statistics)
    evidence.speakers = list(map(str, speakers)) if mode == "speaker" else None
    found = correct(evidence, model.config, "balanced", model.output_adaptation.weights.double().cpu().numpy())
    return softmax(found.apply(evidence, evidence.speakers))
