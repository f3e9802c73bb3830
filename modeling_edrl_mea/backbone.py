"""WavLM made length-aware: the same hidden states alone, in any batch, with any padding.

Weights and names are those of `transformers.WavLMModel`; only the computation differs.

- Feature encoder. Time runs before channels, so a convolution is one matrix product. Where the
  first convolution is followed by a group norm, mean and variance over a recording's *own* samples follow
  from the covariance of its waveform windows: no pass over the activations, and nothing padded counts.
- Transformer. Attention by `scaled_dot_product_attention`, whose mask is the gated relative position bias
  (Chen et al. 2022, WavLM, arXiv 2110.13900, section 3.2) and -inf at padded keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WavLMConfig, WavLMModel
from transformers.models.wavlm.modeling_wavlm import (
    WavLMAttention,
    WavLMEncoder,
    WavLMEncoderLayer,
    WavLMEncoderLayerStableLayerNorm,
    WavLMEncoderStableLayerNorm,
    WavLMFeatureEncoder,
    WavLMFeedForward,
    WavLMGroupNormConvLayer,
    WavLMLayerNormConvLayer,
    WavLMNoLayerNormConvLayer,
)
from transformers.utils import ModelOutput

from .packed_linear import project

ENCODER_SAMPLES = (
    2**14
)  # samples of a batch convolved at once at inference, so that activations stay in the cache
MAX_MASK_ELEMENTS = 2**22  # attention masks are made for so many query-key pairs at once: 16 MB in float32


@dataclass
class BackboneOutput(ModelOutput):
    """What the backbone says about a batch.

    hidden_states: L+1 tensors (batch, frames, hidden): the input of the first layer, then each layer's
        output. With `do_stable_layer_norm` the last one is after the encoder's final layer norm, so it always
        equals the `last_hidden_state` of transformers. Frames outside `frame_mask` hold no meaning.
    frame_mask: (batch, frames) bool, True where a frame lies within its recording.
    attentions: L tensors (batch, heads, frames, frames), each head's own weights; None unless asked for.
    """

    hidden_states: tuple[Tensor, ...] | None = None
    frame_mask: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None


def frame_lengths(config: WavLMConfig, sample_lengths: Tensor | int, n_layers: int | None = None):
    """Number of frames that recordings of so many samples give, 0 for those shorter than one frame.

    Takes an int or an integer tensor and returns the same; `n_layers` stops after that many convolutions.
    """
    for kernel, stride in list(zip(config.conv_kernel, config.conv_stride, strict=True))[:n_layers]:
        sample_lengths = (sample_lengths - kernel) // stride + 1
    if isinstance(sample_lengths, Tensor):
        return sample_lengths.clamp(min=0)
    return max(sample_lengths, 0)


def samples_per_frame(config: WavLMConfig) -> int:
    """Samples from one frame to the next (320 in WavLM: 20 ms at 16 kHz)."""
    hop = 1
    for stride in config.conv_stride:
        hop *= stride
    return hop


def receptive_field(config: WavLMConfig) -> int:
    """Samples that one frame sees, hence the shortest recording that gives a frame (400 in WavLM: 25 ms)."""
    field, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return field


def iter_windows(
    config: WavLMConfig, n_samples: int, max_window_samples: int, overlap_samples: int
) -> Iterator[tuple[int, int, int, int]]:
    """Cuts a long recording into overlapping windows, so that each of its frames is taken from one of them.

    Yields (sample_start, sample_end, first_frame, last_frame): run the backbone on
    `waveform[sample_start:sample_end]` and keep its frames `first_frame:last_frame`; joined, they are the
    frames of the whole recording, in order. Neighbouring windows share about `overlap_samples`, half of it
    context for either. Windows start at whole frames and hold at most `max_window_samples`.

    Raises ValueError where the recording is shorter than one frame, or a window has no room for new frames.
    """
    hop, n_frames = samples_per_frame(config), frame_lengths(config, n_samples)
    window_frames = frame_lengths(config, max_window_samples)
    context = -(-overlap_samples // (2 * hop))  # frames on either side of a seam
    if n_frames < 1:
        raise ValueError(
            f"{n_samples} samples are shorter than one frame ({receptive_field(config)} samples)"
        )
    if n_samples <= max_window_samples:
        yield 0, n_samples, 0, n_frames
        return
    if window_frames <= 2 * context:
        raise ValueError(
            f"windows of {max_window_samples} samples must exceed the overlap, {overlap_samples}"
        )
    taken = 0
    while taken < n_frames:
        # The last window is moved back to full length: frames at its start see more context, not less.
        start = min(max(taken - context, 0), n_frames - window_frames)
        is_last = start + window_frames >= n_frames
        end = n_frames if is_last else start + window_frames - context
        stop = n_samples if is_last else (start + window_frames - 1) * hop + receptive_field(config)
        yield start * hop, min(stop, start * hop + max_window_samples), taken - start, end - start
        taken = end


def convolve(conv: nn.Conv1d, x: Tensor, activation: nn.Module | None = None) -> Tensor:
    """1-d convolution without padding, then an activation: (batch, time, in) → (batch, time', out)."""
    if torch.compiler.is_compiling():
        x = F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, conv.stride).transpose(1, 2)
        return x if activation is None else activation(x)
    windows = x.unfold(1, conv.kernel_size[0], conv.stride[0])  # (batch, time', in, taps)
    return project(conv, windows.transpose(2, 3).flatten(2), activation)


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
    centred = (windows - mean) * weight.transpose(1, 2)
    return mean, centred.transpose(1, 2) @ centred / count


class GroupNormConv(WavLMGroupNormConvLayer):
    """First convolution and group norm as one convolution, whose weights depend on the recording.

    With one channel a group, the norm is affine in each channel. Its mean and variance are w·m and w·C·w for
    a filter w, where m and C are mean and covariance of the waveform windows that the filter sees; a bias
    of the convolution cancels.
    """

    def fold(self, waveforms: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Filters (batch, taps, out) and offsets (batch, 1, out) that convolve and normalise at once."""
        with torch.autocast(waveforms.device.type, enabled=False):
            mean, covariance = window_moments(self.windows(waveforms), valid)
            kernel = self.conv.weight[:, 0].to(mean.dtype)  # (out, taps)
            variance = ((kernel @ covariance) * kernel).sum(2, keepdim=True)  # (batch, out, 1)
            gain = self.layer_norm.weight[:, None] * torch.rsqrt(variance + self.layer_norm.eps)
            filters = (gain * kernel).transpose(1, 2)
            offsets = self.layer_norm.bias - mean @ filters
        return filters.to(self.conv.weight.dtype), offsets.to(self.conv.weight.dtype)

    def windows(self, waveforms: Tensor) -> Tensor:
        return waveforms.unfold(1, self.conv.kernel_size[0], self.conv.stride[0])

    def forward(self, waveforms: Tensor, filters: Tensor, offsets: Tensor) -> Tensor:
        return self.activation(torch.baddbmm(offsets, self.windows(waveforms), filters))


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
        if sample_lengths is None:
            return first.fold(waveforms, None)
        time = torch.arange(frame_lengths(self.config, waveforms.shape[1], 1), device=waveforms.device)
        return first.fold(waveforms, time < frame_lengths(self.config, sample_lengths, 1)[:, None])

    def encode(self, waveforms: Tensor, folded: tuple[Tensor, ...]) -> Tensor:
        first, *others = self.conv_layers
        x = first(waveforms, *folded) if folded else first(waveforms[..., None])
        for layer in others:
            x = layer(x)
        return x


class GatedAttention(WavLMAttention):
    """Self-attention with the gated relative position bias."""

    def __init__(self, config: WavLMConfig, has_relative_position_bias: bool):
        super().__init__(
            config.hidden_size,
            config.num_attention_heads,
            config.attention_dropout,
            config.num_buckets,
            config.max_bucket_distance,
            has_relative_position_bias,
        )

    def forward(
        self, x: Tensor, bias: Tensor, key_bias: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (batch, frames, hidden); bias (heads, frames, frames) and key_bias (batch, 1, 1, frames), whose
        keys run backwards in time (see `Transformer.position_bias`)."""
        query, key, value = (self.heads(project(part, x)) for part in (self.q_proj, self.k_proj, self.v_proj))
        key, value = key.flip(2), value.flip(2)
        gate, bias = self.gate(self.heads(x)).to(query.dtype), bias.to(query.dtype)
        if output_attentions:
            scores = query @ key.transpose(2, 3) * self.scaling + gated_bias(gate, bias, key_bias)
            weights = scores.softmax(-1)
            attended = F.dropout(weights, self.dropout, self.training) @ value
            weights = weights.flip(3)
        else:
            weights, attended = None, self.attend(query, key, value, gate, bias, key_bias)
        return project(self.out_proj, attended.transpose(1, 2).flatten(2)), weights

    def heads(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden) → (batch, heads, frames, hidden / heads)."""
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def gate(self, x: Tensor) -> Tensor:
        """How much of the position bias each query sees: (batch, heads, frames, head) → (…, frames, 1)."""
        update, reset = self.gru_rel_pos_linear(x).unflatten(3, (2, 4)).sum(4).sigmoid().split(1, dim=3)
        return update * (reset * self.gru_rel_pos_const - 1) + 2

    def attend(self, query, key, value, gate, bias, key_bias):
        dropout = self.dropout if self.training else 0.0
        n_queries = query.shape[2]
        step = n_queries
        if not (torch.compiler.is_compiling() or torch.is_grad_enabled()):
            step = max(1, MAX_MASK_ELEMENTS // (query.shape[0] * self.num_heads * n_queries))
        if step >= n_queries:
            mask = gated_bias(gate, bias, key_bias)
            return F.scaled_dot_product_attention(query, key, value, mask, dropout)
        attended = torch.empty_like(query)
        for i in range(0, n_queries, step):
            rows = slice(i, i + step)
            mask = gated_bias(gate[:, :, rows], bias[:, rows], key_bias)
            attended[:, :, rows] = F.scaled_dot_product_attention(
                query[:, :, rows], key, value, mask, dropout
            )
        return attended


def gated_bias(gate: Tensor, bias: Tensor, key_bias: Tensor | None) -> Tensor:
    """Attention mask (batch, heads, queries, keys) in one pass, from (batch, heads, queries, 1) and
    (heads, queries, keys)."""
    return gate * bias if key_bias is None else torch.addcmul(key_bias.to(gate.dtype), gate, bias)


def feed_forward(block: WavLMFeedForward, x: Tensor) -> Tensor:
    x = project(block.intermediate_dense, x, block.intermediate_act_fn)
    return block.output_dropout(project(block.output_dense, block.intermediate_dropout(x)))


class EncoderLayer(WavLMEncoderLayer):
    """Transformer layer that normalises after its residual sums (WavLM base, base-plus)."""

    def __init__(self, config: WavLMConfig, has_relative_position_bias: bool):
        super().__init__(config, has_relative_position_bias)
        self.attention = GatedAttention(config, has_relative_position_bias)

    def forward(self, x: Tensor, *attention_arguments) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attention(x, *attention_arguments)
        x = self.layer_norm(x + self.dropout(attended))
        return self.final_layer_norm(x + feed_forward(self.feed_forward, x)), weights


class StableEncoderLayer(WavLMEncoderLayerStableLayerNorm):
    """Transformer layer that normalises before attention and feed-forward (WavLM large)."""

    def __init__(self, config: WavLMConfig, has_relative_position_bias: bool):
        super().__init__(config, has_relative_position_bias)
        self.attention = GatedAttention(config, has_relative_position_bias)

    def forward(self, x: Tensor, *attention_arguments) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attention(self.layer_norm(x), *attention_arguments)
        x = x + self.dropout(attended)
        return x + feed_forward(self.feed_forward, self.final_layer_norm(x)), weights


class TransformerMixin:
    """Positional convolution and layers; what WavLM's two encoders have in common."""

    layer_class: type[nn.Module]

    def __init__(self, config: WavLMConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(self.layer_class(config, i == 0) for i in range(config.num_hidden_layers))

    def position_bias(self, n_frames: int) -> Tensor:
        """Bias (heads, queries, keys) for a number of frames, with the keys backwards in time.

        It depends on the distance alone. With keys backwards, entry (i, j) is entry i + j of one vector: a
        view that takes no memory, in place of a frames² table.
        """
        attention = self.layers[0].attention
        distance = torch.arange(n_frames - 1, -n_frames, -1, device=attention.rel_attn_embed.weight.device)
        values = attention.rel_attn_embed(attention._relative_positions_bucket(distance))
        return values.T.contiguous().unfold(1, n_frames, 1)

    def is_dropped(self, index: int) -> bool:
        """LayerDrop (Fan et al. 2019, arXiv 1909.11556), which spares the first layer."""
        if not self.training or index == 0 or self.config.layerdrop <= 0:
            return False
        return bool(torch.rand([]) < self.config.layerdrop)

    def forward(self, x: Tensor, frame_mask: Tensor | None, output_attentions: bool):
        """Hidden states, a list of L+1 tensors, and attention weights, a list of L tensors or Nones."""
        key_bias = None
        if frame_mask is not None:
            x = x.masked_fill(~frame_mask[..., None], 0)
            key_bias = torch.zeros_like(frame_mask, dtype=x.dtype)
            key_bias = key_bias.masked_fill(~frame_mask, -torch.inf).flip(1)[:, None, None]
        x = self.embed_positions(x)
        bias = self.position_bias(x.shape[1])
        hidden_states, attentions = [x], []
        for i, layer in enumerate(self.layers):
            weights = None
            if not self.is_dropped(i):
                x, weights = layer(x, bias, key_bias, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        return self.finish(hidden_states), attentions


class Transformer(TransformerMixin, WavLMEncoder):
    layer_class = EncoderLayer

    def embed_positions(self, x: Tensor) -> Tensor:
        return self.dropout(self.layer_norm(x + self.pos_conv_embed(x)))

    def finish(self, hidden_states: list[Tensor]) -> list[Tensor]:
        return hidden_states


class StableTransformer(TransformerMixin, WavLMEncoderStableLayerNorm):
    layer_class = StableEncoderLayer

    def embed_positions(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.pos_conv_embed(x))

    def finish(self, hidden_states: list[Tensor]) -> list[Tensor]:
        return [*hidden_states[:-1], self.layer_norm(hidden_states[-1])]


class LengthAwareWavLM(WavLMModel):
    """WavLM whose hidden states for a recording depend on that recording alone.

    Loads and saves the weights of published WavLM checkpoints. An adapter (`config.add_adapter`) is kept, but
    not applied: its output is no layer's hidden state.
    """

    _supports_sdpa = True

    def __init__(self, config: WavLMConfig):
        if not hasattr(config, "mask_feature_min_masks"):
            config.mask_feature_min_masks = 0  # WavLMModel reads it in training, WavLMConfig lacks it
        super().__init__(config)
        self.feature_extractor = FeatureEncoder(config)
        self.encoder = (StableTransformer if config.do_stable_layer_norm else Transformer)(config)
        self.post_init()

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False
    ) -> BackboneOutput:
        """
        input_values: (batch, samples) waveforms at 16 kHz, padded on the right.
        attention_mask: (batch, samples), 1 within a recording, 0 in its padding; None where there is none.
        output_attentions: also return attention weights; slower, with the same hidden states.

        Raises ValueError where a recording is shorter than one frame or padded anywhere but on the right.
        """
        sample_lengths = self.check_lengths(input_values, attention_mask)
        frame_mask = None
        if sample_lengths is not None:
            input_values = input_values.masked_fill(~attention_mask.bool(), 0)
        x = self.feature_extractor(input_values, sample_lengths)
        if sample_lengths is not None:
            time = torch.arange(x.shape[1], device=x.device)
            frame_mask = time < frame_lengths(self.config, sample_lengths)[:, None]
        x, _ = self.feature_projection(x)
        if self.training and x.shape[1] >= self.config.mask_time_length:
            x = self._mask_hidden_states(x, attention_mask=frame_mask)
        hidden_states, attentions = self.encoder(x, frame_mask, output_attentions)
        if frame_mask is None:
            frame_mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return BackboneOutput(
            hidden_states=tuple(hidden_states),
            frame_mask=frame_mask,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def check_lengths(self, input_values: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Samples in each recording (batch,), or None where nothing is padded."""
        shortest = receptive_field(self.config)
        if input_values.shape[1] < shortest:
            raise ValueError(
                f"{input_values.shape[1]} samples are less than one frame; pad to {shortest} or more"
            )
        if attention_mask is None:
            return None
        attention_mask = attention_mask.bool()
        sample_lengths = attention_mask.sum(1)
        if torch.compiler.is_compiling():
            return sample_lengths
        if attention_mask.all():
            return None
        if sample_lengths.min() < shortest:
            raise ValueError(
                f"recording {int(sample_lengths.argmin())} of the batch has {int(sample_lengths.min())} "
                f"samples, less than one frame; pad it to {shortest} or more and say so in attention_mask"
            )
        if (attention_mask[:, 1:] & ~attention_mask[:, :-1]).any():
            raise ValueError(
                "attention_mask must be 1 within a recording and 0 after its end (right padding)"
            )
        return sample_lengths
