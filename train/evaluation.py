"""What a model says of embedded recordings, and how right that is."""

import numpy as np
import torch

from modeling_edrl_mea import EdrlMeaForAudioClassification

from .embeddings import Embeddings
from .report import Answers
from .stages import ROWS


@torch.no_grad()
def predict(model: EdrlMeaForAudioClassification, data: Embeddings) -> np.ndarray:
    """Probabilities (N, C)."""
    model.eval()
    parts = [model(layer_statistics=part.to(model.device)).logits for part in data.layer_statistics.split(ROWS)]
    return torch.cat(parts).float().softmax(-1).cpu().numpy()


def answers_of(model: EdrlMeaForAudioClassification, data: Embeddings) -> Answers:
    return Answers(data.labels.numpy(), predict(model, data), np.array(data.speakers))
