"""WavLM made length-aware: the same hidden states alone, in any batch, with any padding.

Weights and names are those of `transformers.WavLMModel`; only the computation differs.

- Feature encoder (`feature_encoder.py`). Time runs before channels, so a convolution is one matrix product.
  Where a group norm follows the first, mean and variance over a recording's *own* samples come from the
  covariance of waveform windows: no pass over the activations, and nothing padded counts.
- Transformer. Attention by `scaled_dot_product_attention`, whose mask is the gated relative position bias
  (Chen et al. 2022, WavLM, arXiv 2110.13900) and -inf at padded keys.
"""

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
    WavLMFeedForward,
    WavLMPositionalConvEmbedding,
)

from .feature_encoder import FeatureEncoder
from .frames import BackboneOutput, encode_apart, own_samples, valid_frames
from .prepared_weights import (
    can_prepare,
    forget_changed_weights,
    is_plain_inference,
    is_watched,
    prepared,
    project,
    project_all,
)

# At inference the attention mask is made for so many query-key pairs at once (64 MB in float32), but for no fewer
# queries than the CPU's attention needs to work in its largest blocks.
MAX_MASK_ELEMENTS = 2**24
MIN_QUERIES = 768


class PositionalConv(WavLMPositionalConvEmbedding):
    """The wide grouped convolution that tells frames their place; expects zeros at padded frames.

    On the CPU at inference it multiplies spectra instead (overlap-save), with a third of the arithmetic.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (is_plain_inference(x) and self.may_multiply_spectra()):
            return super().forward(x)
        spectrum = prepared([self.conv], "spectrum", self.spectrum)  # (frequencies, groups, in, out)
        n_taps, n_groups = self.conv.kernel_size[0], self.conv.groups
        fft_size = self.fft_size
        x_padded = F.pad(x.float(), (0, 0, n_taps // 2, fft_size))  # to the right: zeros for the last block
        step = fft_size - n_taps + 1
        n_blocks = -(-x.shape[1] // step)
        blocks = x_padded[:, : (n_blocks - 1) * step + fft_size].unfold(1, fft_size, step)
        blocks = torch.fft.rfft(blocks).permute(3, 0, 1, 2)  # (frequencies, batch, blocks, hidden)
        blocks = blocks.flatten(1, 2).unflatten(2, (n_groups, -1)).transpose(1, 2)
        blocks = (blocks @ spectrum).transpose(1, 2).flatten(2)  # (frequencies, batch · blocks, hidden)
        y = torch.fft.irfft(blocks.permute(1, 2, 0), n=fft_size)[..., :step]
        y = y.unflatten(0, (len(x), n_blocks)).transpose(2, 3).flatten(1, 2)[:, : x.shape[1]]
        return self.activation((y + self.conv.bias.float()).to(x.dtype))

    def may_multiply_spectra(self) -> bool:
        if not hasattr(self.conv, "parametrizations") or is_watched(self.conv):
            return False
        return not any(weight.is_meta for weight in self.conv.parameters())  # offloaded

    @property
    def fft_size(self) -> int:
        """Twice the filter: half of each block is new, and spectra are no larger than the filter needs."""
        return 2 * self.conv.kernel_size[0]

    def spectrum(self) -> Tensor:
        weight = self.conv.weight.detach().float()  # (out, in / groups, taps)
        spectrum = torch.fft.rfft(weight, n=self.fft_size).conj().unflatten(0, (self.conv.groups, -1))
        return spectrum.permute(3, 0, 2, 1).resolve_conj().contiguous()


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
        query, key, value = map(self.heads, project_all([self.q_proj, self.k_proj, self.v_proj], x))
        key, value = backwards(key, 2), backwards(value, 2)
        gate, bias = self.gate(x).to(query.dtype), bias.to(query.dtype)
        if output_attentions:
            scores = query @ key.transpose(2, 3) * self.scaling + gated_bias(gate, bias, key_bias)
            weights = scores.softmax(-1)
            weights = backwards(weights, 3)  # in the order of time, as they are returned
            attended = F.dropout(weights, self.dropout, self.training) @ backwards(value, 2)
        else:
            weights, attended = None, self.attend(query, key, value, gate, bias, key_bias)
        return project(self.out_proj, attended.transpose(1, 2).flatten(2)), weights

    def heads(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden) → (batch, heads, frames, hidden / heads)."""
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def gate(self, x: Tensor) -> Tensor:
        """How much of the position bias each query sees: (batch, frames, hidden) → (batch, heads, frames, 1)."""
        x, linear = x.unflatten(2, (self.num_heads, self.head_dim)), self.gru_rel_pos_linear
        if can_prepare(linear, x):
            summed = F.linear(x, *prepared([linear], "gate", lambda: _sums_of_outputs(linear)))
        else:
            summed = linear(x).unflatten(3, (2, 4)).sum(4)
        update, reset = summed.sigmoid().transpose(1, 2).split(1, dim=3)
        return update * (reset * self.gru_rel_pos_const - 1) + 2

    def attend(self, query, key, value, gate, bias, key_bias):
        dropout = self.dropout if self.training else 0.0
        n_queries = query.shape[2]
        step = n_queries
        if not (torch.compiler.is_compiling() or torch.is_grad_enabled()):
            step = max(MIN_QUERIES, MAX_MASK_ELEMENTS // (query.shape[0] * self.num_heads * n_queries))
        if step >= n_queries:
            mask = gated_bias(gate, bias, key_bias)
            return F.scaled_dot_product_attention(query, key, value, mask, dropout)
        attended = torch.empty_like(query)
        for i in range(0, n_queries, step):
            rows = slice(i, i + step)
            mask = gated_bias(gate[:, :, rows], bias[:, rows], key_bias)
            attended[:, :, rows] = F.scaled_dot_product_attention(query[:, :, rows], key, value, mask, dropout)
        return attended


def _sums_of_outputs(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that gives the sums of its first and its last four outputs."""
    return tuple(part.detach().unflatten(0, (2, 4)).sum(1) for part in (linear.weight, linear.bias))


def backwards(keys: Tensor, dim: int) -> Tensor:
    """In the order of `Transformer.position_bias`."""
    return keys if torch.compiler.is_exporting() else keys.flip(dim)


def gated_bias(gate: Tensor, bias: Tensor, key_bias: Tensor | None) -> Tensor:
    """Attention mask (batch, heads, queries, keys) in one pass, from (batch, heads, queries, 1) and
    (heads, queries, keys)."""
    return gate * bias if key_bias is None else torch.addcmul(key_bias.to(gate.dtype), gate, bias)


class FeedForward(WavLMFeedForward):
    def forward(self, x: Tensor) -> Tensor:
        x = project(self.intermediate_dense, x, self.intermediate_act_fn)
        return self.output_dropout(project(self.output_dense, self.intermediate_dropout(x)))


class EncoderLayer(WavLMEncoderLayer):
    """Transformer layer that normalizes after its residual sums (WavLM base, base-plus)."""

    def __init__(self, config: WavLMConfig, has_relative_position_bias: bool):
        super().__init__(config, has_relative_position_bias)
        self.attention = GatedAttention(config, has_relative_position_bias)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, *attention_arguments) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attention(x, *attention_arguments)
        x = self.layer_norm(x + self.dropout(attended))
        return self.final_layer_norm(x + self.feed_forward(x)), weights


class StableEncoderLayer(WavLMEncoderLayerStableLayerNorm):
    """Transformer layer that normalizes before attention and feed-forward (WavLM large)."""

    def __init__(self, config: WavLMConfig, has_relative_position_bias: bool):
        super().__init__(config, has_relative_position_bias)
        self.attention = GatedAttention(config, has_relative_position_bias)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, *attention_arguments) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attention(self.layer_norm(x), *attention_arguments)
        x = x + self.dropout(attended)
        return x + self.feed_forward(self.final_layer_norm(x)), weights


class TransformerMixin:
    """Positional convolution and layers; what WavLM's two encoders have in common."""

    layer_class: type[nn.Module]

    def __init__(self, config: WavLMConfig):
        super().__init__(config)
        self.pos_conv_embed = PositionalConv(config)
        self.layers = nn.ModuleList(self.layer_class(config, i == 0) for i in range(config.num_hidden_layers))

    def position_bias(self, n_frames: int, device: torch.device) -> Tensor:
        """Bias (heads, queries, keys) for a number of frames, with the keys backwards in time.

        It depends on the distance alone. With keys backwards, entry (i, j) is entry i + j of one vector: a
        view that takes no memory, in place of a frames² table. An exported view would keep the example's number of
        frames: graphs have the table, with the keys forwards, as runtimes fuse attention.
        """
        attention = self.layers[0].attention
        distance = torch.arange(n_frames - 1, -n_frames, -1, device=device)
        values = attention.rel_attn_embed(attention._relative_positions_bucket(distance))
        if torch.compiler.is_exporting():
            place = torch.arange(n_frames, device=distance.device)
            entries = (n_frames - 1 - place)[None] + place[:, None]
            return values.T.index_select(1, entries.flatten()).unflatten(1, (n_frames, n_frames))
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
            key_bias = backwards(key_bias.masked_fill(~frame_mask, -torch.inf), 1)[:, None, None]
        x = self.embed_positions(x)
        if self.training and torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_()  # reentrant checkpointing drops gradients without
        bias = self.position_bias(x.shape[1], x.device)
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
    _no_split_modules = ["EncoderLayer", "StableEncoderLayer"]

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
        sample_lengths = own_samples(self.config, input_values, attention_mask)
        if is_plain_inference(input_values):
            forget_changed_weights(self)
            if sample_lengths is not None:
                return encode_apart(
                    lambda rows: self.forward_at_once(rows, None, None, output_attentions),
                    self.config,
                    input_values,
                    sample_lengths,
                )
        return self.forward_at_once(input_values, attention_mask, sample_lengths, output_attentions)

    def forward_at_once(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None,
        sample_lengths: Tensor | None,
        output_attentions: bool,
    ) -> BackboneOutput:
        """A batch with its padding; `sample_lengths` (batch,) are None where nothing is padded."""
        frame_mask = None
        if sample_lengths is not None:
            input_values = input_values.masked_fill(~attention_mask.bool(), 0)
            frame_mask = valid_frames(self.config, input_values, sample_lengths)
        x = self.feature_extractor(input_values, sample_lengths)
        x, _ = self.feature_projection(x)
        if self.training and x.shape[1] >= self.config.mask_time_length:
            x = self._mask_hidden_states(x, attention_mask=frame_mask)
        hidden_states, attentions = self.encoder(x, frame_mask, output_attentions)
        return BackboneOutput(
            hidden_states=tuple(hidden_states),
            frame_mask=valid_frames(self.config, input_values) if frame_mask is None else frame_mask,
            attentions=tuple(attentions) if output_attentions else None,
        )

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.layers
