"""What a model's probabilities are worth on corpora that it was not trained on: each is left out in turn.

The stand-in for the model is a linear discriminant on its speech embedding, solved in seconds; the model's own training
would take as long again for every corpus.
"""

from collections.abc import Callable

import numpy as np
import torch

from modeling_edrl_mea import EdrlMeaForAudioClassification
from modeling_edrl_mea.adaptation import standardization_share
from modeling_edrl_mea.correction import Evidence, correct, softmax
from modeling_edrl_mea.discriminant import fit_discriminant
from modeling_edrl_mea.embeddings import ROWS, Embeddings, balanced_weights
from modeling_edrl_mea.targets import IGNORED

from .calibration import coverage_thresholds, fit_temperature
from .predictions import evaluate

Logits = Callable[[np.ndarray], np.ndarray]


def thresholds_of(
    model: EdrlMeaForAudioClassification, train: Embeddings, validation: Embeddings, temperature: float = 1.0
) -> dict[str, float]:
    """`coverage_thresholds` of a model at a temperature: sets then cover the held-out speakers and, where there are
    several corpora, each that is left out and adapted to."""
    held_out = evaluate(model, validation).labeled().calibrated(temperature)
    right = held_out.probabilities[np.arange(len(held_out)), held_out.references]
    return coverage_thresholds([right, *right_on_left_out(model, train, validation)])


def right_on_left_out(model, train: Embeddings, validation: Embeddings) -> list[np.ndarray]:
    """By corpus, the right labels' probabilities (n,) for its clean recordings, after training on the other corpora and
    adaptation to it; nothing where there is one corpus."""
    if not train.corpora:
        return []
    corpora, held_out_corpora = (np.where(is_labeled(data), data.corpora, "") for data in (train, validation))
    is_clean = (train.clean_rows == torch.arange(len(train))).numpy()
    names = sorted(set(corpora) - {""})
    if len(names) < 2:
        return []
    u, heard = speech_embeddings(model, train), speech_embeddings(model, validation)
    found = []
    for name in names:
        logits = _classifier(model, train, u, (corpora != name) & (corpora != ""))
        others = (held_out_corpora != name) & (held_out_corpora != "")
        temperature = _temperature(logits, validation, heard, others)
        rows = (corpora == name) & is_clean
        probabilities = softmax(adapted_logits(u[rows], logits, model.config, temperature))
        found.append(probabilities[np.arange(len(probabilities)), train.labels.numpy()[rows]])
    return found


def is_labeled(data: Embeddings) -> np.ndarray:
    """(N,) whether a recording has an emotion, and not ratings of attributes alone."""
    return (data.labels != IGNORED).numpy()


@torch.no_grad()
def speech_embeddings(model, data: Embeddings) -> np.ndarray:
    """(N, S)."""
    parts = [model.edrl_mea.speech_embedding(part.to(model.device)) for part in data.layer_statistics.split(ROWS)]
    return torch.cat(parts).double().cpu().numpy()


def _classifier(model, data: Embeddings, u: np.ndarray, rows: np.ndarray) -> Logits:
    labels, corpora = data.labels[torch.from_numpy(rows)], np.array(data.corpora)[rows].tolist()
    weights = balanced_weights(labels, corpora)
    found = fit_discriminant(torch.from_numpy(u[rows]), labels, weights, model.config.n_trained_labels, folds=[])
    return lambda features: found.logits(torch.from_numpy(features)).numpy()


def _temperature(logits: Logits, data: Embeddings, u: np.ndarray, rows: np.ndarray) -> float:
    """Fitted on held-out speakers of the corpora that were trained on; 1 where these have none."""
    if not rows.any():
        return 1.0
    return fit_temperature(data.labels.numpy()[rows], softmax(logits(u[rows])), np.array(data.speakers)[rows])


def adapted_logits(u: np.ndarray, logits: Logits, config, temperature: float = 1.0) -> np.ndarray:
    """Logits (N, C) for speech embeddings (N, S), divided by a temperature, as `model.adapt` leaves them."""
    count = len(u)
    share = standardization_share(count, "balanced", config.labels, config)
    u = (u - share * u.mean(0)) / np.sqrt(1 - share + share * u.var(0))
    evidence = Evidence(logits(u) / temperature, [np.zeros((count, 0))], u, np.ones(count), [None] * count)
    return correct(evidence, config, "balanced").apply(evidence)
