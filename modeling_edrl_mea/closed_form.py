"""The closed-form steps of training: standardization, MEA, and the classifier on aligned embeddings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import solve_triangular

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
    metric = fit_noise_metric(model, data, accelerator) if config.shrinks_noise else None
    scales = metric is None  # the metric is a scaling
    pls = MultiblockPLS(config.n_components, scale_blocks=scales, standardize=scales)
    rank, n_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    for rows in torch.arange(len(data))[rank::n_processes].split(ROWS):
        pls.partial_fit(*alignment_inputs(model, data, rows, metric))
    if n_processes > 1:
        pls.reduce(accelerator)
    pls.solve(accelerator)
    if metric:
        metric.undo(pls, config.alignment_target)
    if not config.standardize_components:
        pls.score_scales_ = pls.score_scales_.square().mean().sqrt().expand_as(pls.score_scales_)
    model.alignment.load_solution(pls)
    return pls


@torch.no_grad()
def alignment_inputs(
    model, data: Embeddings, rows: Tensor, metric: "NoiseMetric | None" = None
) -> tuple[list[Tensor], Tensor]:
    """X-blocks and Y of MEA for some rows of the data, as the config arranges them.

    `metric`: coordinates to put speech embeddings into.
    """
    heads, config = model.edrl_mea, model.config
    u, clean = (
        heads.speech_embedding(data.layer_statistics[which].to(model.device)) for which in (rows, data.clean_rows[rows])
    )
    if metric is not None:
        u, clean = metric.apply(u), metric.apply(clean)
    disentangled = heads.disentanglement(u) if config.arrangement == "edrl_mea" else None
    labels = known_outputs(config, data, rows).to(u)
    targets = {"own_speech": u, "clean_original": clean, "labels": labels}
    y = torch.cat([targets[target] for target in config.alignment_target], dim=-1)
    return heads.alignment_blocks(u, disentangled), y


def known_outputs(config, data: Embeddings, rows: Tensor) -> Tensor:
    """(n, C + A): shares of the emotions, and ratings between -1 and 1, in the middle where missing."""
    parts = [as_targets(data.targets[rows], config.n_emotions)[0]] if config.n_emotions else []
    if config.n_attributes:
        parts.append(ratings_of(config, data)[rows].nan_to_num())
    return torch.cat(parts, 1)


def ratings_of(config, data: Embeddings) -> Tensor:
    """(N, A) between -1 and 1; NaN where missing."""
    if data.attributes is None:
        raise ValueError(f"The model rates {config.attribute_names}, and the training data has no attributes.")
    return split_targets(config, None, data.attributes)[1]


@torch.no_grad()
def with_aligned(model, data: Embeddings) -> Embeddings:
    """The same recordings as what MEA, which is fitted, makes of them."""
    model.eval()
    aligned = torch.empty(len(data), model.config.n_components)
    for rows, part in zip(aligned.split(ROWS), data.layer_statistics.split(ROWS), strict=True):
        rows.copy_(model.alignment([model.edrl_mea.speech_embedding(part.to(model.device))]))
    return replace(data, aligned=aligned)


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
    """EDRL starts as that classifier on what it is given: t, or u without MEA; returns the chosen regularization."""
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
    return fit_discriminant(features, *about, config.n_emotions, folds, known.corpora)


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


# --- noise metric ---


class NoiseMetric:
    """Maps u (n, S) to coordinates whose Euclidean distance is the metric, and a solution of MEA there back to u.

    The coordinates are L⁻¹u with LL' = I + (s/n̄)N, the Cholesky factor: what follows does not see rotations.
    """

    def __init__(self, noise_scatter: Tensor, shrinkage: float):
        """`noise_scatter`: N (S, S); zero where there are no noisy copies, and the metric is then Euclidean."""
        typical = float(noise_scatter.square().sum() / noise_scatter.trace().clamp_min(1e-30))
        shrunk = noise_scatter * (shrinkage / typical) if typical > 0 else noise_scatter
        self.factor = torch.linalg.cholesky(torch.eye(len(shrunk), dtype=shrunk.dtype) + shrunk)

    def apply(self, u: Tensor) -> Tensor:
        return solve_triangular(self.factor, u.to(self.factor).T, upper=False).T

    def undo(self, pls: MultiblockPLS, targets: Sequence[str]) -> None:
        """Rewrites a solution found in these coordinates as one for u itself, in place.

        `targets`: the config's `alignment_target`, all of which but "labels" are speech embeddings.
        """
        factor, size = self.factor, len(self.factor)
        pls.rotations_ = solve_triangular(factor.T, pls.rotations_ / pls.x_scale_[:, None], upper=True)
        pls.loadings_ = factor @ (pls.loadings_ * pls.x_scale_[:, None])
        pls.x_mean_, pls.x_scale_ = factor @ pls.x_mean_, torch.ones_like(pls.x_scale_)
        n_labels = len(pls.y_mean_) - size * sum(target != "labels" for target in targets)
        start = 0
        for target in targets:
            columns = slice(start, start + (n_labels if target == "labels" else size))
            if target != "labels":
                pls.y_mean_[columns] = factor @ pls.y_mean_[columns]
                pls.y_loadings_[columns] = factor @ pls.y_loadings_[columns]
            start = columns.stop


@torch.no_grad()
def fit_noise_metric(model, data: Embeddings, accelerator=None) -> NoiseMetric:
    """The metric by the noisy copies among these recordings, shared among processes."""
    size = model.config.speech_embedding_size
    scatter, n_copies = torch.zeros(size, size, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    rank, n_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    copies = (data.clean_rows != torch.arange(len(data))).nonzero()[:, 0]
    for rows in copies[rank::n_processes].split(ROWS):
        own, clean = (
            model.edrl_mea.speech_embedding(data.layer_statistics[part].to(model.device)).double().cpu()
            for part in (rows, data.clean_rows[rows])
        )
        scatter += (own - clean).T @ (own - clean)
        n_copies += len(rows)
    if n_processes > 1:
        scatter, n_copies = (
            accelerator.reduce(part.to(accelerator.device), reduction="sum").cpu() for part in (scatter, n_copies)
        )
    return NoiseMetric(scatter / n_copies.clamp_min(1), model.config.noise_shrinkage)
