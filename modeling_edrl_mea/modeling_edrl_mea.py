"""EDRL-MEA: backbone → speech embedding → disentanglement and alignment → classifier."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import ModelOutput, can_return_tuple, logging

from .adaptation import AdaptationMixin, OutputAdaptation
from .alignment import EmbeddingAlignment
from .backbone import build_backbone, check_architecture, input_settings, load_backbone
from .configuration_edrl_mea import EdrlMeaConfig
from .disentanglement import Disentanglement, EmotionDisentanglement, cross_entropy, init_linear
from .evaluation_mode import evaluating
from .feature_extraction_edrl_mea import is_silence
from .frames import BackboneOutput
from .prediction import PredictionMixin
from .pretrained import EdrlMeaPreTrainedModel
from .recordings import load_recording
from .speech_embedding import SpeechEmbedding
from .targets import as_targets, attribute_loss, on_scale, split_targets, to_unit
from .timeline_stream import TimelineMixin
from .windows import run_in_windows

logger = logging.get_logger(__name__)

EMBEDDING_BATCH = 8  # recordings that `embed_recordings` sends through the backbone at once


@dataclass
class EdrlMeaOutput(ModelOutput):
    """The model's outputs for a batch; None for a part that the arrangement lacks.

    loss: () sum of `losses`, where labels were given.
    logits: (B, C), in the order of `config.id2label`; with `problem_type="regression"` the attributes.
    attributes: (B, A) float32, in the order of `config.attribute_names` and on the scales of `config.attribute_ranges`.
    speech_embedding: u, (B, S). intra_class_embeddings: z₁…z_C, (B, C, d). shared_embedding: z₀, (B, d).
    aligned_embedding: t, (B, k), once the alignment is fitted.
    hidden_states, attentions: of the backbone, where asked for.
    losses: each weighted term of the loss by name.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    attributes: torch.Tensor | None = None
    speech_embedding: torch.Tensor | None = None
    intra_class_embeddings: torch.Tensor | None = None
    shared_embedding: torch.Tensor | None = None
    aligned_embedding: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    losses: dict[str, torch.Tensor] | None = None

    @classmethod
    def of(
        cls,
        config: EdrlMeaConfig,
        frames: BackboneOutput | None,
        u: torch.Tensor,
        disentangled: Disentanglement | None,
        aligned: torch.Tensor | None,
    ):
        output = cls(speech_embedding=u, aligned_embedding=aligned)
        if disentangled is not None:
            output.intra_class_embeddings = disentangled.intra_class_embeddings
            output.shared_embedding = disentangled.shared_embedding
            output.logits, output.attributes = split_outputs(disentangled.logits, config)
            output.losses = disentangled.losses
        if frames is not None:
            output.hidden_states, output.attentions = frames.hidden_states, frames.attentions
        return output

    def in_order(self) -> "EdrlMeaOutput":
        """With its parts in the order above, however they were set: people index `loss, logits = outputs[:2]`."""
        return type(self)(**{field.name: getattr(self, field.name) for field in fields(self)})


class EdrlMeaModel(EdrlMeaPreTrainedModel):
    """Waveforms to speech embedding, disentangled embeddings and aligned embedding."""

    def __init__(self, config: EdrlMeaConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        self.speech_embedding = SpeechEmbedding(config)
        self.disentanglement = EmotionDisentanglement(config) if config.uses_disentanglement else None
        self.alignment = None
        if config.uses_alignment:
            blocks = [config.block_size] * len(config.block_names)
            self.alignment = EmbeddingAlignment(blocks, config.speech_embedding_size, config.n_components)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        layer_statistics: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sample_weights: torch.Tensor | None = None,
        attributes: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> EdrlMeaOutput:
        """
        Args:
            input_values: (B, n) waveforms; attention_mask: (B, n), 1 on each recording's own samples.
            layer_statistics: (B, L+1, S') computed earlier by [`layer_statistics`], instead of waveforms.
            labels: as [`as_targets`] takes them; EDRL's losses are computed where they are given, or attributes are.
                With `problem_type="regression"` the ratings of the attributes.
            sample_weights: (B,) weights of the recordings in the losses, of mean 1 over the training data. Ratings
                beside emotions weigh the same.
            attributes: (B, A) ratings on the scales of the config; NaN for one that is missing.
            output_hidden_states, output_attentions: by default as the config says. Of a recording longer than a window,
                attentions reach no further than the window that a frame is taken from.
            kwargs: `return_dict`, by default as the config says.
        """
        labels, ratings = split_targets(self.config, labels, attributes)
        frames = None
        if layer_statistics is None:
            layer_statistics, frames = self.run_backbone(
                input_values,
                attention_mask,
                _or(output_hidden_states, self.config.output_hidden_states),
                _or(output_attentions, self.config.output_attentions),
            )
        u = self.speech_embedding(layer_statistics)
        disentangled, aligned = self.disentangle_and_align(u, labels, sample_weights, ratings)
        return EdrlMeaOutput.of(self.config, frames, u, disentangled, aligned)

    def run_backbone(self, input_values, attention_mask=None, output_hidden_states=False, output_attentions=False):
        """Waveforms (B, n) of any length → pooled statistics (B, L+1, S'), and the frames' part that is asked for.

        Raises ValueError for what is no batch of waveforms.
        """
        if input_values.dim() != 2 or not input_values.is_floating_point():
            raise ValueError(
                f"input_values of shape {tuple(input_values.shape)} and type {input_values.dtype}: give floats (batch, "
                "samples), as model.feature_extractor()(recordings, sampling_rate=…, return_tensors='pt') makes them."
            )
        asked_for = output_hidden_states, output_attentions
        return run_in_windows(self.backbone, self.config, input_values.to(self.dtype), attention_mask, *asked_for)

    def layer_statistics(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Pooled statistics (B, L+1, S') of every layer of the backbone: all that the heads see of a recording."""
        return self.run_backbone(input_values, attention_mask)[0]

    def disentangle_and_align(self, u, labels=None, sample_weights=None, ratings=None):
        """(disentanglement, aligned embedding), None for a part that the arrangement leaves out."""
        if self.disentanglement is None:
            return None, None
        disentangled = self.disentanglement(u, labels, sample_weights, ratings)
        if self.alignment is None or not self.alignment.is_fitted:
            return disentangled, None
        return disentangled, self.alignment(disentangled.blocks)

    def train(self, mode: bool = True):
        """A wholly frozen backbone stays in evaluation mode: its dropout would only blur what cannot learn."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self


class EdrlMeaForAudioClassification(AdaptationMixin, PredictionMixin, TimelineMixin, EdrlMeaPreTrainedModel):
    """Classifier of emotions in speech, rater of attributes, or both.

    Until the alignment of the paper's order is fitted, the logits are those of EDRL's own classifier; from then on they
    come from the aligned embedding. [`stage`] says which.
    """

    _keep_in_fp32_modules_strict = [*EdrlMeaPreTrainedModel._keep_in_fp32_modules_strict, "output_adaptation"]

    def __init__(self, config: EdrlMeaConfig):
        super().__init__(config)
        self.edrl_mea = EdrlMeaModel(config)
        sizes = {"linear": config.speech_embedding_size, "edrl_mea": config.n_components}
        size = sizes.get(config.arrangement)  # the default ends in EDRL and its own classifier
        self.classifier = nn.Linear(size, config.n_outputs) if size else None
        self.output_adaptation = OutputAdaptation(config)
        self.post_init()

    @classmethod
    def from_backbone(
        cls, backbone: str | os.PathLike | PreTrainedConfig, id2label: dict[int, str] | None = None, **kwargs
    ):
        """A model with new heads around a pretrained speech encoder.

        Args:
            backbone: Hub id or directory of any checkpoint of WavLM, wav2vec 2.0, HuBERT, data2vec-audio, UniSpeech,
                UniSpeech-SAT, Wav2Vec2-Conformer, Wav2Vec2-BERT or Whisper (whose encoder is taken); a config of one
                of them gives random weights.
            id2label: emotion names in the order of the logits.
            kwargs: fields of [`EdrlMeaConfig`].

        Raises:
            ValueError: a checkpoint that does not say whether it was trained on normalized waveforms, where
                `normalize_waveform` is not given either; a checkpoint of another architecture.
        """
        if isinstance(backbone, PreTrainedConfig):
            return cls(EdrlMeaConfig(backbone_config=backbone, id2label=id2label, **kwargs))
        backbone_config = AutoConfig.from_pretrained(backbone)
        check_architecture(backbone_config, backbone)
        if "normalize_waveform" not in kwargs:
            kwargs = input_settings(backbone, backbone_config) | kwargs
        pretrained = load_backbone(backbone)
        model = cls(EdrlMeaConfig(backbone_config=pretrained.config.to_dict(), id2label=id2label, **kwargs))
        model.backbone.load_state_dict(pretrained.state_dict())
        return model

    @property
    def backbone(self) -> nn.Module:
        return self.edrl_mea.backbone

    @property
    def alignment(self) -> EmbeddingAlignment | None:
        return self.edrl_mea.alignment

    @property
    def stage(self) -> str:
        """What the logits are made from: "linear" (u), "disentanglement" (EDRL's embeddings of u) or "alignment" (the
        aligned embedding)."""
        if self.edrl_mea.disentanglement is None:
            return "linear"
        return "alignment" if self.alignment is not None and self.alignment.is_fitted else "disentanglement"

    @property
    def ends_in_disentanglement(self) -> bool:
        """Whether the logits are those of EDRL's own classifier."""
        return self.classifier is None or self.stage == "disentanglement"

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        layer_statistics: torch.Tensor | None = None,
        sample_weights: torch.Tensor | None = None,
        speakers: torch.Tensor | None = None,
        attributes: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> EdrlMeaOutput:
        """As [`EdrlMeaModel.forward`]; with `labels` or `attributes` also the loss: EDRL's terms, and those of the
        classifier that the logits come from where that is another one. The logits are corrected by what [`adapt`]
        found, the terms of training are not.

        Args:
            speakers: (B,) places in `config.adapted_speakers`, -1 for somebody else; without them nobody's own biases
                count.
        """
        output = self.edrl_mea(
            input_values,
            attention_mask,
            layer_statistics,
            labels,
            sample_weights,
            attributes,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        trained, output.attributes = self.trained_outputs(output)
        if not self.config.is_regression:
            embeddings = torch.cat(self.label_embedding(output), -1), output.speech_embedding
            output.logits = self.output_adaptation(trained, *embeddings, speakers)
        if input_values is not None and not self.training:
            self.hear_nothing_in_silence(output, input_values, attention_mask)
        if self.config.is_regression:
            output.logits = output.attributes
        if labels is not None or attributes is not None:
            output.losses = self._losses(output, trained, labels, sample_weights, attributes)
            output.loss = sum(output.losses.values())
        return output.in_order()

    def trained_outputs(self, output: EdrlMeaOutput) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (B, C trained) and attributes (B, A) of what [`EdrlMeaModel`] gave, before any adaptation."""
        if self.ends_in_disentanglement:
            return output.logits, output.attributes
        features = output.speech_embedding if self.alignment is None else self.aligned_or_zero(output)
        return split_outputs(self.classifier(features.to(self.dtype)), self.config)

    def trained_logits(self, output: EdrlMeaOutput) -> torch.Tensor:
        return self.trained_outputs(output)[0]

    def aligned_or_zero(self, output: EdrlMeaOutput) -> torch.Tensor:
        """(B, k) aligned embedding; zero where the alignment is not fitted yet."""
        if output.aligned_embedding is not None:
            return output.aligned_embedding
        return output.speech_embedding.new_zeros(len(output.speech_embedding), self.config.n_components)

    def without_voice_uniform(self, logits, input_values, attention_mask=None) -> torch.Tensor:
        """Logits (B, C), where silence has the same for every emotion: no bias of the model decides on it."""
        silent = is_silence(input_values, attention_mask, self.config.normalize_waveform)
        return logits.masked_fill(silent[:, None], 0.0)

    def hear_nothing_in_silence(self, output: EdrlMeaOutput, input_values, attention_mask) -> None:
        """The same score for every emotion, and for every attribute the middle of its scale."""
        if not self.config.is_regression:
            output.logits = self.without_voice_uniform(output.logits, input_values, attention_mask)
        if output.attributes is not None:
            unit = to_unit(output.attributes, self.config)
            unit = self.without_voice_uniform(unit, input_values, attention_mask)
            output.attributes = on_scale(unit, self.config)

    def _losses(self, output, trained, labels, sample_weights, attributes) -> dict[str, torch.Tensor]:
        """In training EDRL's terms and those of what comes behind it; in evaluation those of what is predicted."""
        losses = output.losses or {}
        if self.training and self.ends_in_disentanglement:
            return losses
        labels, ratings = split_targets(self.config, labels, attributes)
        prefix, logits = "aligned_", trained
        if not self.training:
            losses, prefix, logits, sample_weights = {}, "", output.logits, None
        if labels is not None:
            targets = as_targets(labels, logits.shape[1], sample_weights)
            losses[f"{prefix}classification"] = cross_entropy(logits, *targets)
        if ratings is not None:
            weights = sample_weights if self.config.is_regression else None
            predicted = to_unit(output.attributes, self.config)
            loss = attribute_loss(predicted, ratings, weights, self.config.attribute_loss)
            losses[f"{prefix}attribute"] = self.config.attribute_weight * loss
        return losses

    @torch.no_grad()
    def forget_labels(self) -> None:
        self.forget_adaptation()
        self.config.coverage_thresholds = None
        if self.classifier is not None:
            init_linear(self.classifier, nn.init)
        super().forget_labels()

    def freeze_feature_encoder(self) -> None:
        """No gradients for the convolutions under the backbone."""
        self.backbone.freeze_feature_encoder()

    def freeze_backbone(self, keep_last_n_layers: int = 0) -> None:
        """No gradients for the backbone, but for its last `keep_last_n_layers` transformer layers."""
        layers = self.backbone.layers
        if not 0 <= keep_last_n_layers <= len(layers):
            raise ValueError(
                f"keep_last_n_layers={keep_last_n_layers}: the backbone has {len(layers)} transformer layers."
            )
        self.backbone.requires_grad_(False)
        layers[len(layers) - keep_last_n_layers :].requires_grad_(True)
        self.train(self.training)

    @torch.no_grad()
    def set_temperature(self, temperature: float) -> None:
        """Divide the logits of the trained model by `temperature` (Guo et al. 2017): the last classifier's weights are,
        so whatever is made of them stays true. `config.coverage_thresholds`, of the former probabilities, go."""
        last = self.edrl_mea.disentanglement.classifier if self.ends_in_disentanglement else self.classifier
        for parameter in last.parameters():
            parameter[: self.config.n_emotions].mul_(self.config.temperature / temperature)
        self.config.temperature = float(temperature)
        self.config.coverage_thresholds = None

    @property
    def is_backbone_frozen(self) -> bool:
        """Whether nothing before the speech embedding learns, so that its statistics can be computed once."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    @torch.no_grad()
    def embed_recordings(self, recordings: Sequence, sampling_rate: int | None = None) -> torch.Tensor:
        """Layer statistics (N, L+1, S'), on the CPU, of recordings as [`load_recording`] takes them."""
        recordings = list(recordings) if isinstance(recordings, Iterator) else recordings
        if isinstance(recordings, (str, os.PathLike, bytes)) or not len(recordings):
            raise ValueError(f"Give a list of at least one recording, not {recordings!r:.60}.")
        extract, rate = self.feature_extractor(), sampling_rate or self.config.sampling_rate
        statistics = []
        with evaluating(self):
            for start in range(0, len(recordings), EMBEDDING_BATCH):
                numbers = range(start, min(start + EMBEDDING_BATCH, len(recordings)))
                batch = [load_recording(recordings[i], rate, name=f"recording {i}") for i in numbers]
                inputs = extract(batch, sampling_rate=rate, return_tensors="pt").to(self.device)
                statistics.append(self.edrl_mea.layer_statistics(**inputs).cpu())
        return torch.cat(statistics)


def split_outputs(outputs: torch.Tensor, config) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the last linear layer gave (B, C + A) → logits of emotions (B, C) and attributes on their scales (B, A)."""
    logits, ratings = outputs.split((config.n_emotions, config.n_attributes), 1)
    return logits, on_scale(ratings, config) if config.n_attributes else None


def _or(given: bool | None, otherwise: bool) -> bool:
    return otherwise if given is None else given
