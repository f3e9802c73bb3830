"""Waveforms to features by strided convolutions: exact for each recording of a batch, in bounded memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WavLMConfig
from transformers.models.wavlm.modeling_wavlm import (
    WavLMFeatureEncoder,
    WavLMGroupNormConvLayer,
    WavLMLayerNormConvLayer,
    WavLMNoLayerNormConvLayer,
)

from .frames import frame_lengths, receptive_field, samples_per_frame
from .prepared_weights import is_watched, project

# Samples of a batch convolved at once at inference (4 s): their activations take 26 MB a layer in float32.
ENCODER_SAMPLES = 2**16


def convolve(conv: nn.Conv1d, x: Tensor, activation: nn.Module | None = None) -> Tensor:
    """1-d convolution without padding, then an activation: (batch, time, in) → (batch, time', out)."""
    if torch.compiler.is_compiling() or must_be_called(conv):
        x = conv(x.transpose(1, 2)).transpose(1, 2)
        return x if activation is None else activation(x)
    windows = x.unfold(1, conv.kernel_size[0], conv.stride[0])  # (batch, time', in, taps)
    return project(conv, windows.transpose(2, 3).flatten(2), activation)


def must_be_called(conv: nn.Module) -> bool:
    """Whether only a call of the convolution gives its output: a wrapper (LoRA), hooks, offloaded weights."""
    return type(conv) is not nn.Conv1d or is_watched(conv) or conv.weight.is_meta


def window_moments(windows: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean (batch, 1, taps) and covariance (batch, taps, taps) of waveform windows (batch, time, taps).

    Windows outside `valid` (batch, time) do not count. In float64, where the device has it: a faint sound on
    a large offset would drown in float32.
    """
    windows = windows.float() if windows.device.type == "mps" else windows.double()
    if valid is None:
        valid = torch.ones(windows.shape[:2], device=windows.device)
    weight = valid.to(windows.dtype)[:, None]  # (batch, 1, time)
    count = weight.sum(2, keepdim=True)
    mean = weight @ windows / count
    centered = (windows - mean) * weight.transpose(1, 2)
    return mean, centered.transpose(1, 2) @ centered / count


class GroupNormConv(WavLMGroupNormConvLayer):
    """First convolution and group norm as one convolution, whose weights depend on the recording.

    With one channel a group, the norm is affine in each channel. Its mean and variance are w·m and w·C·w for
    a filter w, where m and C are mean and covariance of the waveform windows that the filter sees; a bias
    of the convolution cancels.
    """

    def fold(self, waveforms: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Filters (batch, taps, out) and offsets (batch, 1, out) that convolve and normalize at once."""
        with torch.autocast(waveforms.device.type, enabled=False):
            mean, covariance = window_moments(self.windows(waveforms), valid)
            kernel = self.conv.weight[:, 0].to(mean.dtype)  # (out, taps)
            variance = ((kernel @ covariance) * kernel).sum(2, keepdim=True)  # (batch, out, 1)
            gain = self.layer_norm.weight[:, None] * torch.rsqrt(variance + self.layer_norm.eps)
            filters = (gain * kernel).transpose(1, 2)
            offsets = self.layer_norm.bias - mean @ filters
        return filters.to(self.conv.weight.dtype), offsets.to(self.conv.weight.dtype)

    def windows(self, waveforms: Tensor) -> Tensor:
        n_taps, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if torch.compiler.is_exporting():  # an exported view would keep the example's number of samples
            each_tap = torch.eye(n_taps, device=waveforms.device, dtype=waveforms.dtype)[:, None]
            return F.conv1d(waveforms[:, None], each_tap, stride=stride).transpose(1, 2)
        return waveforms.unfold(1, n_taps, stride)

    def forward(self, waveforms: Tensor, filters: Tensor, offsets: Tensor) -> Tensor:
        return self.activation(torch.baddbmm(offsets, self.windows(waveforms), filters))

    def convolve_whole(self, waveforms: Tensor, valid: Tensor | None) -> Tensor:
        """The same by calling the convolution: whole recordings (batch, samples), the norm over valid frames."""
        x = self.conv(waveforms[:, None])
        valid = torch.ones_like(x[:, 0], dtype=torch.bool) if valid is None else valid
        weight = valid[:, None].to(x.dtype)
        mean = (x * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True)
        centered = x - mean
        variance = (centered.square() * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True)
        x = centered * torch.rsqrt(variance + self.layer_norm.eps)
        x = x * self.layer_norm.weight[:, None] + self.layer_norm.bias[:, None]
        return self.activation(x.transpose(1, 2))


class LayerNormConv(WavLMLayerNormConvLayer):
    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer_norm(convolve(self.conv, x)))


class PlainConv(WavLMNoLayerNormConvLayer):
    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.conv, x, self.activation)


class FeatureEncoder(WavLMFeatureEncoder):
    """Waveforms (batch, samples) → features (batch, frames, channels)."""

    def __init__(self, config: WavLMConfig):
        super().__init__(config)
        layers = [LayerNormConv if config.feat_extract_norm == "layer" else PlainConv] * len(self.conv_layers)
        if config.feat_extract_norm == "group":
            layers[0] = GroupNormConv
        self.conv_layers = nn.ModuleList(layer(config, i) for i, layer in enumerate(layers))
        self.config = config

    def forward(self, waveforms: Tensor, sample_lengths: Tensor | None = None) -> Tensor:
        if self.training and self._requires_grad and torch.is_grad_enabled():
            waveforms = waveforms.detach().requires_grad_()  # reentrant checkpointing drops gradients without
        if any(must_be_called(module) for module in self.modules() if hasattr(module, "stride")):
            return self.encode_whole(waveforms, sample_lengths)
        folded = self.fold(waveforms, sample_lengths)
        n_frames = frame_lengths(self.config, waveforms.shape[1])
        step = n_frames
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            step = max(1, ENCODER_SAMPLES // (samples_per_frame(self.config) * len(waveforms)))
        if step >= n_frames:
            return self.encode(waveforms, folded)
        hop, field = samples_per_frame(self.config), receptive_field(self.config)
        starts = range(0, n_frames, step)
        pieces = (waveforms[:, i * hop : (min(i + step, n_frames) - 1) * hop + field] for i in starts)
        return torch.cat([self.encode(piece, folded) for piece in pieces], dim=1)

    def fold(self, waveforms: Tensor, sample_lengths: Tensor | None) -> tuple[Tensor, ...]:
        """What the first layer needs to know of whole recordings: nothing, unless it has a group norm."""
        first = self.conv_layers[0]
        if not isinstance(first, GroupNormConv):
            return ()
        return first.fold(waveforms, self.valid_after_first(waveforms, sample_lengths))

    def valid_after_first(self, waveforms: Tensor, sample_lengths: Tensor | None) -> Tensor | None:
        if sample_lengths is None:
            return None
        time = torch.arange(frame_lengths(self.config, waveforms.shape[1], 1), device=waveforms.device)
        return time < frame_lengths(self.config, sample_lengths, 1)[:, None]

    def encode_whole(self, waveforms: Tensor, sample_lengths: Tensor | None) -> Tensor:
        """In one piece, each convolution called once, as hooks and wrappers expect."""
        first, *others = self.conv_layers
        if isinstance(first, GroupNormConv):
            x = first.convolve_whole(waveforms, self.valid_after_first(waveforms, sample_lengths))
        else:
            x = first(waveforms[..., None])
        for layer in others:
            x = layer(x)
        return x

    def encode(self, waveforms: Tensor, folded: tuple[Tensor, ...]) -> Tensor:
        if folded and torch.compiler.is_exporting():
            return self.encode_channels_first(waveforms, *folded)
        first, *others = self.conv_layers
        x = first(waveforms, *folded) if folded else first(waveforms[..., None])
        for layer in others:
            x = layer(x)
        return x

    def encode_channels_first(self, waveforms: Tensor, filters: Tensor, offsets: Tensor) -> Tensor:
        """The same for graphs, whose convolutions take channels before time: nothing is transposed between them."""
        first, *others = self.conv_layers
        windows = first.windows(waveforms).transpose(1, 2)
        x = first.activation(filters.transpose(1, 2) @ windows + offsets.transpose(1, 2))
        for layer in others:
            x = layer.activation(layer.conv(x))
        return x.transpose(1, 2)
