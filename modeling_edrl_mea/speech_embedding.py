"""From the backbone's frames to the speech embedding u.

frames (B, T, D) of every layer → pooled statistics (B, L+1, S) → standardized → combined over layers → u.

The statistics are pooled layer by layer, before layers are combined. For the mean this equals pooling the combined
layers, since both are linear; for the standard deviation it is ours. It lets statistics be computed once and cached
while the layers' weights are still being learned.
"""

from typing import NamedTuple

import torch
from torch import nn

from .exact_buffers import ExactBuffers

ROWS = 256  # recordings taken into memory at once, where there are more than fit
MINIMUM_SCALE = 1e-4  # of a statistic's standard deviation: a constant one is left at zero rather than divided by it


class FrameMoments(NamedTuple):
    """Moments over valid frames of each layer, mergeable across the windows of a long recording."""

    weight: torch.Tensor  # (B, L+1, 1) number of frames
    mean: torch.Tensor  # (B, L+1, D)
    scatter: torch.Tensor  # (B, L+1, D) sum of squared deviations

    def merge(self, other: "FrameMoments") -> "FrameMoments":
        """Moments of both windows' frames (Chan, Golub & LeVeque 1979)."""
        weight = self.weight + other.weight
        share = other.weight / weight.clamp_min(1e-12)
        difference = other.mean - self.mean
        mean = self.mean + share * difference
        scatter = self.scatter + other.scatter + difference.square() * self.weight * share
        return FrameMoments(weight, mean, scatter)

    def statistics(self) -> torch.Tensor:
        """Mean and standard deviation, (B, L+1, 2D) float32."""
        variance = self.scatter / self.weight.clamp_min(1e-12)
        return torch.cat([self.mean, variance.clamp_min(1e-10).sqrt()], dim=-1)


def frame_moments(hidden_states, frame_mask: torch.Tensor) -> FrameMoments:
    """Of valid frames: `hidden_states` are L+1 tensors (B, T, D), `frame_mask` is (B, T) bool."""
    layers = [_layer_moments(frames, frame_mask) for frames in hidden_states]
    return FrameMoments(*(torch.stack(part, dim=1) for part in zip(*layers, strict=True)))


def _layer_moments(frames: torch.Tensor, frame_mask: torch.Tensor) -> tuple:
    frames, weights = frames.float(), frame_mask.unsqueeze(-1).float()
    total = weights.sum(1)
    mean = (frames * weights).sum(1) / total.clamp_min(1e-12)
    scatter = ((frames - mean.unsqueeze(1)).square() * weights).sum(1)
    return total, mean, scatter


class SpeechEmbedding(ExactBuffers):
    """Pooled statistics of all layers → speech embedding u.

    Standardization is fitted in closed form by [`fit`]; until then u is not standardized. Its buffers
    stay float32 whatever the model is cast to.
    """

    def __init__(self, config):
        super().__init__()
        n_layers, size = config.n_layers, config.statistics_size
        self.clip = config.standardization_clip
        self.concatenate = config.layer_combination == "concatenate"
        self.register_buffer("mean", torch.zeros(n_layers, size, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(n_layers, size, dtype=torch.float32))
        # Recordings behind mean and scale; 0: not fitted.
        self.register_buffer("n_recordings", torch.zeros((), dtype=torch.float32))
        # What adaptation moves standardized statistics by; zero: nothing.
        for name in ("adapted_shift", "adapted_log_spread"):
            self.register_buffer(name, torch.zeros(n_layers, size, dtype=torch.float32))
        self.layer_logits = None if self.concatenate else nn.Parameter(torch.zeros(n_layers, dtype=torch.float32))

    def forward(self, layer_statistics: torch.Tensor) -> torch.Tensor:
        """(B, L+1, S') → u (B, S), float32."""
        with torch.autocast(layer_statistics.device.type, enabled=False):
            return self.combine(self.standardize(layer_statistics))

    def standardize(self, layer_statistics: torch.Tensor) -> torch.Tensor:
        standardized = (self._by_training(layer_statistics) - self.adapted_shift) * (-self.adapted_log_spread).exp()
        return standardized.clamp(-self.clip, self.clip)

    def _by_training(self, layer_statistics: torch.Tensor) -> torch.Tensor:
        return (layer_statistics.float() - self.mean) / self.scale

    def combine(self, standardized: torch.Tensor) -> torch.Tensor:
        if self.concatenate:
            return standardized.flatten(1)
        weights = self.layer_logits.to(standardized.dtype).softmax(0)
        return torch.einsum("l,bls->bs", weights, standardized)

    @property
    def is_fitted(self) -> bool:
        return bool(self.n_recordings > 0)

    def reset(self, init) -> None:
        """Not fitted; `init` is `transformers.initialization`, which spares what a checkpoint just filled."""
        init.zeros_(self.mean)
        init.ones_(self.scale)
        init.zeros_(self.n_recordings)
        init.zeros_(self.adapted_shift)
        init.zeros_(self.adapted_log_spread)
        if self.layer_logits is not None:
            init.zeros_(self.layer_logits)

    @torch.no_grad()
    def fit(self, layer_statistics: torch.Tensor) -> None:
        """Standardize by these statistics (N, L+1, S') of the training recordings, on whatever device."""
        self.set_standardization(*mean_and_scale(layer_statistics), len(layer_statistics))

    @torch.no_grad()
    def set_standardization(self, mean, scale, n_recordings) -> None:
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.n_recordings.fill_(float(n_recordings))
        self.forget_adaptation()

    @torch.no_grad()
    def adapt(self, layer_statistics: torch.Tensor, weights: torch.Tensor, share: float) -> None:
        """Standardize by the mean and deviation of these statistics (N, L+1, S'), recordings counting as `weights` (N,)
        say, for `share` of the way from those of training (AdaBN, Li et al. 2017; the share after Schneider et al.
        2020)."""
        self.forget_adaptation()
        if share == 0:
            return
        rows = self._by_training(layer_statistics.to(self.mean.device)).double()
        weights = (weights / weights.sum()).to(rows)[:, None, None]
        mean = (weights * rows).sum(0)
        variance = 1 - share + share * (weights * (rows - mean).square()).sum(0)
        self.adapted_shift.copy_(share * mean)
        self.adapted_log_spread.copy_(variance.clamp_min(MINIMUM_SCALE).log() / 2)

    @torch.no_grad()
    def forget_adaptation(self) -> None:
        self.adapted_shift.zero_()
        self.adapted_log_spread.zero_()


def mean_and_scale(layer_statistics: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, L+1, S') → mean and standard deviation (L+1, S') in float64, in one pass (Chan, Golub & LeVeque 1979); a
    constant statistic gets scale 1."""
    n_rows, mean, scatter = 0, 0.0, 0.0
    for part in layer_statistics.split(ROWS):
        part = part.double()
        own = part.mean(0)
        share = len(part) / (n_rows + len(part))
        scatter += (part - own).square().sum(0) + (own - mean).square() * (n_rows * share)
        mean += (own - mean) * share
        n_rows += len(part)
    deviation = (scatter / n_rows).sqrt()
    return mean, torch.where(deviation < MINIMUM_SCALE, torch.ones_like(deviation), deviation)
