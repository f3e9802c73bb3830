"""The closed-form steps of training: standardization, MEA, and the classifier on aligned embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .discriminant import fit_discriminant
from .embeddings import ROWS, Embeddings
from .linear_heads import LinearHead, corpus_folds, fit_ratings, fit_regression, speaker_folds, whole
from .multiblock_pls import MultiblockPLS
from .targets import as_targets, split_targets


def fit_speech_embedding(model, data: Embeddings) -> None:
    """Standardize by the clean originals and their noisy copies alike."""
    model.edrl_mea.speech_embedding.fit(data.layer_statistics)


def fit_alignment(model, data: Embeddings, accelerator=None) -> MultiblockPLS:
    """MEA in one pass over the recordings, shared among processes; EDRL's weights stay as they are."""
    model.eval()
    config = model.config
    pls = MultiblockPLS(config.n_components)
    rank, n_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    for rows in torch.arange(len(data))[rank::n_processes].split(ROWS):
        pls.partial_fit(*alignment_inputs(model, data, rows))
    if n_processes > 1:
        pls.reduce(accelerator)
    pls.solve(accelerator)
    model.alignment.load_solution(pls)
    return pls


@torch.no_grad()
def alignment_inputs(model, data: Embeddings, rows: Tensor) -> tuple[list[Tensor], Tensor]:
    """X-blocks and Y of MEA for some rows of the data: EDRL's blocks, and the speech embedding."""
    u = model.edrl_mea.speech_embedding(data.layer_statistics[rows].to(model.device))
    return model.edrl_mea.disentanglement(u).blocks, u


def ratings_of(config, data: Embeddings) -> Tensor:
    """(N, A) between -1 and 1; NaN where missing."""
    if data.attributes is None:
        raise ValueError(f"The model rates {config.attribute_names}, and the training data has no attributes.")
    return split_targets(config, None, data.attributes)[1]


def train_classifier(model, data: Embeddings) -> float:
    """The config's `classifier` on the aligned embedding (on u without MEA), balanced by the sample weights.

    Returns the chosen regularization; see [`fit_classifier`].
    """
    weight, bias, chosen = fit_classifier(model, data)
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    return chosen


def start_disentanglement(model, data: Embeddings) -> float:
    """EDRL starts as that classifier on u; returns the chosen regularization."""
    weight, bias, chosen = fit_classifier(model, data)
    model.edrl_mea.disentanglement.start_from(weight, bias)
    return chosen


def fit_classifier(model, data: Embeddings) -> tuple[Tensor, Tensor, float]:
    """Weights (C + A, features), biases (C + A,), and what regularizes the emotions', or the attributes' where there
    are none: C of the logistic regression, or the ridge, chosen by cross-validation whose folds share no speaker."""
    config, heads = model.config, []
    if config.n_emotions:
        heads.append(fit_emotions(model, data))
    if config.n_attributes:
        features, ratings = ClassifierFeatures(model, data), ratings_of(config, data)
        heads.append(fit_ratings(features, ratings, data.speakers, config.attribute_loss))
    weight, bias = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
    return weight.float(), bias.float(), heads[0].regularization


def fit_emotions(model, data: Embeddings) -> LinearHead:
    """By the recordings that have a label."""
    config = model.config
    known = labeled(data, config.n_emotions)
    features, about = ClassifierFeatures(model, data, known.rows), (known.labels, known.sample_weights)
    if config.classifier == "regression":
        return fit_regression(whole(features), *about, known.speakers, config.n_emotions)
    folds = speaker_folds(known.labels.numpy(), known.speakers) + corpus_folds(known.corpora)
    return fit_discriminant(features, *about, config.n_emotions, folds)


@dataclass
class Labeled:
    """What is known of rows (n,) of the data: emotion (n,), weight (n,), speaker and corpus."""

    rows: Tensor
    labels: Tensor
    sample_weights: Tensor
    speakers: list[str]
    corpora: list[str]


def labeled(data: Embeddings, n_emotions: int) -> Labeled:
    """Each recording that has a label; one with soft labels once for each emotion, weighed by its share."""
    shares, _ = as_targets(data.targets, n_emotions)
    rows, labels = shares.nonzero(as_tuple=True)
    about = ([part[row] for row in rows.tolist()] if part else [] for part in (data.speakers, data.corpora))
    return Labeled(rows, labels, data.sample_weights[rows] * shares[rows, labels], *about)


class ClassifierFeatures:
    """(n, k) aligned embeddings, or (n, S) speech embeddings where the arrangement has no MEA, of some rows of the
    data, all by default. They are computed whenever they are gone through, and not kept."""

    def __init__(self, model, data: Embeddings, rows: Tensor | None = None):
        self.model, self.data, self.rows = model, data, torch.arange(len(data)) if rows is None else rows
        width = model.config.speech_embedding_size if model.alignment is None else model.config.n_components
        self.shape = (len(self.rows), width)

    @torch.no_grad()
    def split(self, n_rows: int) -> Iterator[Tensor]:
        """`n_rows` at a time."""
        self.model.eval()
        for rows in self.rows.split(n_rows):
            output = self.model.edrl_mea(layer_statistics=self.data.layer_statistics[rows].to(self.model.device))
            yield (output.speech_embedding if self.model.alignment is None else output.aligned_embedding).cpu()
