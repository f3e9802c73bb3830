"""Encoders of transformers as they are: wav2vec 2.0, HuBERT, data2vec-audio, UniSpeech-SAT and their relatives."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .frames import BackboneOutput, encode_apart, own_samples, valid_frames


class StockEncoder(nn.Module):
    """Any encoder with learned convolutions over the waveform, in transformers' own code.

    Padding changes what most of them say, so recordings of different lengths never share a batch: rows of equal length
    are encoded together, the others apart. An adapter behind the last layer is left out, as its output is no layer's
    hidden state; so are LayerDrop and SpecAugment in training.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config, self.model = config, AutoModel.from_config(without_extras(config))

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False
    ) -> BackboneOutput:
        """As [`LengthAwareWavLM.forward`]."""
        sample_lengths = own_samples(self.config, input_values, attention_mask)
        if sample_lengths is not None:
            return encode_apart(
                lambda rows: self.forward(rows, None, output_attentions), self.config, input_values, sample_lengths
            )
        with eager_attention(self.model, output_attentions):
            output = self.model(
                self.features(input_values), output_hidden_states=True, output_attentions=output_attentions
            )
        return BackboneOutput(
            hidden_states=(*output.hidden_states[:-1], output.last_hidden_state),
            frame_mask=valid_frames(self.config, input_values),
            attentions=output.attentions if output_attentions else None,
        )

    def features(self, waveforms: Tensor) -> Tensor:
        """What the encoder takes, from (batch, samples) without padding."""
        return waveforms

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.encoder.layers

    def freeze_feature_encoder(self) -> None:
        self.model.feature_extractor._freeze_parameters()


def without_extras(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy that builds the encoder alone, in whatever dtype the whole model is."""
    config = copy.deepcopy(config)
    config.dtype = None
    config.add_adapter = config.use_intermediate_ffn_before_adapter = config.apply_spec_augment = False
    config.layerdrop = 0.0
    return config


@contextmanager
def eager_attention(model: PreTrainedModel, wanted: bool = True) -> Iterator[None]:
    """The one implementation that gives attention weights."""
    usual = model.config._attn_implementation
    try:
        if wanted:
            model.set_attn_implementation("eager")
        yield
    finally:
        if wanted:
            model.set_attn_implementation(usual)
