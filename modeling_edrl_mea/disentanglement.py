"""EDRL: an encoder for each emotion beside one that they share, and the losses that keep them apart.

After arXiv 2510.09072, of which the abstract names the two kinds of encoder; layers and losses are our reconstruction.
An attribute that is rated on a scale has an encoder too, as if it were one emotion more: C counts both where it is a
size, and what is an emotion's alone says so.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .global_batch import GlobalBatch
from .targets import IGNORED, as_targets, attribute_loss


@dataclass
class Disentanglement:
    intra_class_embeddings: torch.Tensor  # (B, C, d)
    shared_embedding: torch.Tensor  # (B, d)
    logits: torch.Tensor  # (B, C), of EDRL's own classifier; of attributes, which come last, ratings between -1 and 1
    losses: dict[str, torch.Tensor] | None = None  # already weighted; their sum is stage 1's loss

    @property
    def blocks(self) -> list[torch.Tensor]:
        """z₀, z₁…z_C, each (B, d)."""
        return [self.shared_embedding, *self.intra_class_embeddings.unbind(1)]


class ClassWiseLinear(nn.Module):
    """C independent linear layers as one batched product: (B, i) or (B, C, i) → (B, C, o)."""

    def __init__(self, n_classes: int, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(n_classes, out_features))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        equation = "bi,cio->bco" if inputs.dim() == 2 else "bci,cio->bco"
        return torch.einsum(equation, inputs, self.weight) + self.bias


class EmotionDisentanglement(nn.Module):
    """u (B, S) → intra-class embeddings z₁…z_C, shared embedding z₀, logits, and losses where targets are given."""

    def __init__(self, config):
        super().__init__()
        n_classes, size, block = config.n_outputs, config.speech_embedding_size, config.block_size
        self.kinds, self.attribute_loss = (config.n_emotions, config.n_attributes), config.attribute_loss
        self.loss_weights = {name: getattr(config, f"{name}_weight") for name in LOSSES}
        self.intra_output = ClassWiseLinear(n_classes, size, block)
        self.shared_output = nn.Linear(size, block)
        self.score = ClassWiseLinear(n_classes, block, 1)
        self.decoder = ClassWiseLinear(n_classes, 2 * block, size)
        self.classifier = nn.Linear((n_classes + 1) * block, n_classes)

    def forward(
        self,
        u: torch.Tensor,
        labels: torch.Tensor | None = None,
        sample_weights: torch.Tensor | None = None,
        ratings: torch.Tensor | None = None,
    ):
        """`labels` as [`as_targets`] takes them; `sample_weights` (B,), of mean 1 over the training data; `ratings` as
        [`split_targets`] gives them."""
        u = u.to(self.intra_output.weight.dtype)  # the classifier's may be quantized
        if labels is None and ratings is None:
            return self._disentangle(u)
        targets = Targets.of(u, labels, ratings, sample_weights, self.kinds)
        if not self.training:
            return self._with_losses(u, targets)
        batch = GlobalBatch(len(u), u.device)
        u, *targets = (batch.gather(part) for part in (u, *targets))
        whole = self._with_losses(u, Targets(*targets))
        own = (batch.own(part) for part in (whole.intra_class_embeddings, whole.shared_embedding, whole.logits))
        return Disentanglement(*own, whole.losses)

    def _disentangle(self, u: torch.Tensor) -> Disentanglement:
        intra, shared = self.intra_output(u), self.shared_output(u)
        return Disentanglement(intra, shared, self.classifier(torch.cat([shared, intra.flatten(1)], dim=-1)))

    def _with_losses(self, u, targets: "Targets") -> Disentanglement:
        result = self._disentangle(u)
        result.losses = self._losses(result, u, targets)
        return result

    def forget_labels(self) -> None:
        """Re-initialize all but the shared encoder, the only part that does not depend on the labels."""
        for module in self.modules():
            if isinstance(module, ClassWiseLinear):
                init_class_wise(module, nn.init)
        init_linear(self.classifier, nn.init)

    @torch.no_grad()
    def start_from(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Start as a linear classifier with `weight` (C, S) and `bias` (C,): the first number of z_c becomes the logit
        of emotion c, which its score and the classifier pass on."""
        self.intra_output.weight[..., 0].copy_(weight)
        self.intra_output.bias[:, 0].copy_(bias)
        for layer in (self.score, self.classifier):
            layer.weight.zero_()
            layer.bias.zero_()
        self.score.weight[:, 0] = 1
        n_classes, block = self.intra_output.bias.shape
        for emotion in range(n_classes):
            self.classifier.weight[emotion, (1 + emotion) * block] = 1

    def _losses(self, result: Disentanglement, u, targets: "Targets") -> dict[str, torch.Tensor]:
        values = self._prediction_losses(result.logits, targets)
        of_scores = self._prediction_losses(self.score(result.intra_class_embeddings)[..., 0], targets)
        values |= {
            "intra_class": sum(of_scores.values()),
            "reconstruction": reconstruction_error(self.decoder, result, u, targets.owners),
            "decorrelation": squared_correlation(result.intra_class_embeddings, result.shared_embedding),
            "shared_invariance": told_share(result.shared_embedding, targets),
        }
        return {name: self.loss_weights[name] * value for name, value in values.items() if self.loss_weights[name]}

    def _prediction_losses(self, outputs: torch.Tensor, targets: "Targets") -> dict[str, torch.Tensor]:
        logits, ratings = outputs.split(self.kinds, 1)
        losses = {}
        if self.kinds[0]:
            losses["classification"] = cross_entropy(logits, targets.shares, targets.weights[:, 0])
        if self.kinds[1]:
            wanted = targets.ratings, targets.rating_weights[:, 0]
            losses["attribute"] = attribute_loss(ratings, *wanted, self.attribute_loss)
        return losses


LOSSES = ("classification", "attribute", "intra_class", "reconstruction", "decorrelation", "shared_invariance")


class Targets(NamedTuple):
    """What a batch is trained on. Ratings beside emotions all weigh the same: the given weights balance emotions."""

    shares: torch.Tensor  # (B, emotions); zero where there is no label
    weights: torch.Tensor  # (B, 1), of the recordings in the losses of emotions
    ratings: torch.Tensor  # (B, attributes) between -1 and 1; NaN where missing
    rating_weights: torch.Tensor  # (B, 1)

    @classmethod
    def of(cls, u, labels, ratings, sample_weights, kinds: tuple[int, int]) -> "Targets":
        n_emotions, n_attributes = kinds
        if labels is None:
            labels = torch.full((len(u),), IGNORED)
        shares, weights = u.new_zeros(len(u), 0), u.new_ones(len(u))
        if n_emotions:
            shares, weights = as_targets(labels, n_emotions, sample_weights)
        of_ratings = torch.ones_like(weights) if n_emotions or sample_weights is None else sample_weights
        ratings = u.new_full((len(u), n_attributes), torch.nan) if ratings is None else ratings
        return cls(*(part.to(u) for part in (shares, weights[:, None], ratings, of_ratings[:, None])))

    @property
    def owners(self) -> torch.Tensor:
        """(B, C) how far each encoder answers for a recording: that of its emotion, and those of its ratings."""
        rated = self.ratings.isfinite().to(self.shares) / max(1, self.ratings.shape[1])
        return torch.cat([self.shares * self.weights, rated * self.rating_weights], 1)


def init_linear(module: nn.Linear, init) -> None:
    """nn.Linear's own initialization, bias zero; `init` is `transformers.initialization` or `torch.nn.init`."""
    bound = module.in_features**-0.5
    init.uniform_(module.weight, -bound, bound)
    init.zeros_(module.bias)


def init_class_wise(module: ClassWiseLinear, init) -> None:
    """nn.Linear's own initialization, a class at a time."""
    bound = 1 / math.sqrt(module.weight.shape[1])
    init.uniform_(module.weight, -bound, bound)
    init.zeros_(module.bias)


def cross_entropy(logits, targets, weights) -> torch.Tensor:
    return (F.cross_entropy(logits, targets.to(logits), reduction="none") * weights.to(logits)).mean()


def reconstruction_error(decoder, result: Disentanglement, u, owners) -> torch.Tensor:
    """Mean squared error of the own class's decoder only, so that encoder y learns its own class's manifold."""
    shared = result.shared_embedding.unsqueeze(1).expand_as(result.intra_class_embeddings)
    rebuilt = decoder(torch.cat([result.intra_class_embeddings, shared], dim=-1))  # (B, C, S)
    errors = (rebuilt - u.unsqueeze(1)).square().mean(-1)
    return (errors * owners).sum(1).mean()


def squared_correlation(intra: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Mean squared correlation over the batch between every feature of z_c and of z₀; 0 for a single sample."""
    if len(shared) < 2:
        return shared.new_zeros(())
    correlation = torch.einsum("bcd,be->cde", _standardized(intra), _standardized(shared)) / len(shared)
    return correlation.square().mean()


def told_share(shared: torch.Tensor, targets: Targets) -> torch.Tensor:
    """How far z₀ tells emotions apart, and how far it goes with ratings, missing ones taken for their mean."""
    told = between_class_share(shared, targets.shares)
    if targets.ratings.shape[1]:
        ratings = targets.ratings.where(targets.ratings.isfinite(), targets.ratings.nanmean(0).nan_to_num())
        told = told + squared_correlation(ratings[:, :, None], shared)
    return told


def between_class_share(shared: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Share of z₀'s variance that lies between the class means, in [0, 1]."""
    if len(shared) < 2:
        return shared.new_zeros(())
    centered = shared - shared.mean(0)
    counts = targets.sum(0)
    class_means = targets.T @ centered / counts.clamp_min(1e-6).unsqueeze(1)
    between = (class_means.square() * counts.unsqueeze(1)).sum()
    return between / centered.square().sum().clamp_min(1e-8)


def _standardized(values: torch.Tensor) -> torch.Tensor:
    centered = values - values.mean(0)
    return centered * torch.rsqrt(centered.square().mean(0) + 1e-6)
