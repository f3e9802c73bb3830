"""The backbone that is pretrained, the heads that it has until then, and the losses."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import WavLMConfig, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMLayerNormConvLayer

from .targets import FrameTargets, frame_mask, pool
from .teacher import Teacher

SEEN_WEIGHT = 0.5  # of the loss at frames that are not masked
POOLED_WEIGHT = 3.0  # of what the teacher says of whole recordings

COMPACT = dict(
    conv_dim=(64, 128, 256, 256),
    conv_kernel=(10, 8, 8, 8),
    conv_stride=(5, 4, 4, 4),  # a frame every 20 ms
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=1024,
    num_conv_pos_embeddings=64,
    num_conv_pos_embedding_groups=16,
    num_buckets=160,
    max_bucket_distance=400,
)


def backbone_config(**sizes) -> WavLMConfig:
    """Configuration of the backbone; `sizes` replaces fields of COMPACT. Hop 320 samples, padding exact."""
    return WavLMConfig(
        **{**COMPACT, **sizes},
        feat_extract_norm="layer",  # statistics over channels of one frame: padding changes no result
        mask_time_prob=0.05,  # transformers' default; masks are given here, but at 0 it has no mask embedding
        layerdrop=0.0,
        hidden_dropout=0.0,  # a few passes over the data: nothing to regularize, and resuming is exact
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
    )


class _ContiguousConvLayer(WavLMLayerNormConvLayer):
    """The stock layer's values and gradients; GELU and its gradient work on contiguous memory."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv(hidden_states).transpose(-2, -1).contiguous()
        return self.activation(self.layer_norm(hidden_states)).transpose(-2, -1).contiguous()


class Pretraining(nn.Module):
    """The backbone and the heads that are thrown away after pretraining.

    `functionals`: how many there are of a recording; `recording_weight`: of the loss on them.
    """

    def __init__(
        self, config: WavLMConfig, targets: FrameTargets, functionals: int, recording_weight: float, teacher=None
    ):
        super().__init__()
        self.backbone, self.targets, self.teacher = WavLMModel(config), targets, teacher
        self.recording_weight = recording_weight
        for layer in self.backbone.feature_extractor.conv_layers:
            layer.__class__ = _ContiguousConvLayer
        self.frame_head = nn.Linear(config.hidden_size, len(targets.mean))
        pooled = 2 * config.hidden_size * (config.num_hidden_layers + 1)
        self.recording_head = nn.Linear(pooled, functionals) if functionals else None
        self.teacher_heads = _teacher_heads(config, teacher) if teacher else None
        self.teacher_recording_head = nn.Linear(pooled, len(teacher.components)) if teacher else None

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """Losses by name; `loss` is their weighted sum."""
        valid = frame_mask(batch, self.targets.config)
        samples = torch.arange(batch["noisy"].shape[1], device=valid.device)
        output = self.backbone(
            batch["noisy"],
            attention_mask=(samples < batch["lengths"][:, None]).long(),
            mask_time_indices=batch["mask"],
            output_hidden_states=True,
        )
        with torch.autocast(valid.device.type, enabled=False):
            error = F.smooth_l1_loss(
                self.frame_head(output.last_hidden_state.float()), self.targets(batch), reduction="none", beta=0.5
            ).mean(-1)
            losses = {"masked": _mean_at(error, batch["mask"]), "seen": _mean_at(error, valid & ~batch["mask"])}
            loss = losses["masked"] + SEEN_WEIGHT * losses["seen"]
            if self.teacher is not None:
                losses |= self.teacher_losses(output, batch, valid)
                loss = loss + losses["taught_frames"] + POOLED_WEIGHT * losses["taught_recordings"]
            if self.recording_head is not None:
                pooled = pool(output.hidden_states, valid)
                losses["recording"] = F.mse_loss(self.recording_head(pooled), batch["functionals"])
                loss = loss + self.recording_weight * losses["recording"]
        return {"loss": loss, **losses}

    def teacher_losses(self, output, batch: dict, valid: torch.Tensor) -> dict[str, torch.Tensor]:
        """Squared error against the teacher's layers at each frame, and against what they say of whole recordings,
        told from the student's own mean and deviation of every layer, as a probe of it would."""
        targets = self.teacher.states(batch)
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        depths = torch.linspace(0, len(states) - 1, len(targets)).round().int().tolist()
        said = [head(states[depth].float()) for head, depth in zip(self.teacher_heads, depths, strict=True)]
        error = (torch.stack(said) - targets).square().mean((0, 3))
        of_recordings = self.teacher_recording_head(pool(output.hidden_states, valid))
        recordings = F.mse_loss(of_recordings, self.teacher.of_recordings(targets, valid))
        return {"taught_frames": _mean_at(error, valid), "taught_recordings": recordings}


def _teacher_heads(config: WavLMConfig, teacher: Teacher) -> nn.ModuleList:
    """One for each of the teacher's layers; where the student has its shape they begin by taking it for the teacher."""
    layers, width = teacher.mean.shape[0], teacher.mean.shape[-1]
    heads = nn.ModuleList(nn.Linear(config.hidden_size, width) for _ in range(layers))
    if (layers, width) == (config.num_hidden_layers + 1, config.hidden_size):
        for head, mean, scale in zip(heads, teacher.mean[:, 0, 0], teacher.scale[:, 0, 0], strict=True):
            head.weight.data.copy_(torch.diag(1 / scale))
            head.bias.data.copy_(-mean / scale)
    return heads


def _mean_at(error: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Mean of error (batch, frames) where True; 0 where nothing is."""
    return (error * where).sum() / where.sum().clamp(min=1)
