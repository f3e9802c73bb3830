"""EDRL-MEA: backbone → speech embedding → disentanglement and alignment → classifier."""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .adaptation import AdaptationReport, OutputAdaptation, adapt, forget
from .alignment import EmbeddingAlignment
from .backbone import build_backbone, check_architecture, in_half_where_exact, input_settings, load_backbone
from .configuration_edrl_mea import EdrlMeaConfig
from .disentanglement import (
    ClassWiseLinear,
    EmotionDisentanglement,
    cross_entropy,
    init_class_wise,
    init_linear,
)
from .explanation import explain
from .feature_extraction_edrl_mea import NORMALIZATION_EPSILON, EdrlMeaFeatureExtractor
from .frames import BackboneOutput, iter_windows, own_samples, receptive_field, samples_per_frame
from .labels import as_targets
from .recordings import load_recording
from .speech_embedding import SpeechEmbedding, StatisticsPooling
from .timeline import Timeline
from .timeline_stream import TimelineStream, predict_timeline
from .windows import JoinedWindows, joined_recordings

logger = logging.get_logger(__name__)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
EMBEDDING_BATCH = 8  # recordings that `embed_recordings` sends through the backbone at once

SILENT_VARIANCE = 2.0**-30  # one step of 16-bit samples, squared: -90 dB of full scale


@dataclass
class EdrlMeaOutput(ModelOutput):
    """What the model says about a batch; None where the arrangement has no such room.

    loss: () sum of `losses`, where labels were given.
    logits: (B, C), in the order of `config.id2label`.
    speech_embedding: u, (B, S). intra_class_embeddings: z₁…z_C, (B, C, d). shared_embedding: z₀, (B, d).
    aligned_embedding: t, (B, k), once the alignment is fitted.
    hidden_states, attentions: of the backbone, where asked for.
    losses: each weighted term of the loss by name.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    speech_embedding: torch.Tensor | None = None
    intra_class_embeddings: torch.Tensor | None = None
    shared_embedding: torch.Tensor | None = None
    aligned_embedding: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    losses: dict[str, torch.Tensor] | None = None


class EdrlMeaPreTrainedModel(PreTrainedModel):
    config_class = EdrlMeaConfig
    base_model_prefix = "edrl_mea"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["EncoderLayer", "StableEncoderLayer", "EmotionDisentanglement"]
    # The loss is a mean over the batch, so Trainer has to divide it by the steps of gradient accumulation itself.
    accepts_loss_kwargs = False
    # Standardisation and PLS rotations do not survive bfloat16.
    _keep_in_fp32_modules_strict = ["alignment", "speech_embedding", "output_adaptation"]
    # Models saved before there was adaptation of the output are not adapted.
    _keys_to_ignore_on_load_missing = [r"output_adaptation\."]

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, ClassWiseLinear):
            init_class_wise(module, init)
        elif isinstance(module, EmbeddingAlignment):
            module.reset()
        elif isinstance(module, SpeechEmbedding):
            module.reset(init)
        elif isinstance(module, OutputAdaptation):
            module.reset()
        elif isinstance(module, nn.Linear):
            init_linear(module, init)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers. With `ignore_mismatched_sizes=True` and other labels (in number, names or order), exactly
        what depends on labels starts anew: see [`forget_labels`]. Without it, as many other names only rename."""
        # The directory's own config: transformers takes out of `kwargs` what it changes.
        where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if pretrained_model_name_or_path is not None:
            _refuse_other_models(pretrained_model_name_or_path, where)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for module in model.modules():
            if isinstance(module, EmbeddingAlignment) and not module.refresh():
                module.reset()  # all of it, where another label set emptied a part
        if kwargs.get("ignore_mismatched_sizes") and pretrained_model_name_or_path is not None:
            stored = EdrlMeaConfig.from_pretrained(pretrained_model_name_or_path, **where)
            if stored.labels[: stored.n_trained_labels] != model.config.labels:
                model.forget_labels()
        return loaded

    @torch.no_grad()
    def forget_labels(self) -> None:
        """Re-initialise what depends on the labels: the encoders, decoders and classifiers of the emotions, and an
        alignment that has their embeddings or the labels for a block. The backbone, the speech embedding and the shared
        encoder stay."""
        for module in self.modules():
            if isinstance(module, EmotionDisentanglement):
                module.forget_labels()
            elif isinstance(module, EmbeddingAlignment) and self.config.alignment_uses_labels:
                module.reset()
            elif isinstance(module, EdrlMeaForAudioClassification):
                module.forget_adaptation()
                if module.classifier is not None:
                    init_linear(module.classifier, nn.init)

    def save_pretrained(self, save_directory, *args, state_dict=None, **kwargs):
        """Also writes the feature extractor, so that any saved directory works with `pipeline`; and a backbone that
        float16 holds exactly, as a frozen one that was published so, in float16."""
        state_dict = in_half_where_exact(self.state_dict() if state_dict is None else state_dict)
        super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)
        if kwargs.get("is_main_process", True):
            # Also where this code was itself loaded by `trust_remote_code`: the copy works as the original did.
            EdrlMeaFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
            self.feature_extractor().save_pretrained(save_directory)
            _offer_auto_model(save_directory)
            _let_others_read(save_directory)

    def feature_extractor(self) -> EdrlMeaFeatureExtractor:
        return EdrlMeaFeatureExtractor(
            sampling_rate=self.config.sampling_rate,
            do_normalize=self.config.normalize_waveform,
            minimum_length=receptive_field(self.config.backbone_config),
        )


class EdrlMeaModel(EdrlMeaPreTrainedModel):
    """Waveforms to speech embedding, disentangled embeddings and aligned embedding."""

    def __init__(self, config: EdrlMeaConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        self.pooling = StatisticsPooling(config.pooling, config.backbone_config.hidden_size)
        self.speech_embedding = SpeechEmbedding(config)
        self.disentanglement = EmotionDisentanglement(config) if config.uses_disentanglement else None
        self.alignment = None
        if config.uses_alignment:
            self.alignment = EmbeddingAlignment(config.block_sizes, config.alignment_target_size, config.n_components)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        layer_statistics: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sample_weights: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> EdrlMeaOutput:
        """
        Args:
            input_values: (B, n) waveforms; attention_mask: (B, n), 1 on each recording's own samples.
            layer_statistics: (B, L+1, S') computed earlier by [`layer_statistics`], instead of waveforms.
            labels: as [`as_targets`] takes them; EDRL's losses are computed where they are given.
            sample_weights: (B,) weights of the recordings in the losses, of mean 1 over the training data.
            output_hidden_states, output_attentions, return_dict: by default as the config says. Of a recording longer
                than a window, attentions reach no further than the window that a frame is taken from.
        """
        output_hidden_states = _or(output_hidden_states, self.config.output_hidden_states)
        output_attentions = _or(output_attentions, self.config.output_attentions)
        frames = None
        if layer_statistics is None:
            layer_statistics, frames = self._run_backbone(
                input_values, attention_mask, output_hidden_states, output_attentions
            )
        u = self.speech_embedding(layer_statistics)
        aligned, disentangled = self.disentangle_and_align(u, labels, sample_weights)
        output = EdrlMeaOutput(speech_embedding=u, aligned_embedding=aligned)
        if disentangled is not None:
            output.intra_class_embeddings = disentangled.intra_class_embeddings
            output.shared_embedding = disentangled.shared_embedding
            output.logits = disentangled.logits
            output.losses = disentangled.losses
        if frames is not None:
            output.hidden_states = frames.hidden_states if output_hidden_states else None
            output.attentions = frames.attentions if output_attentions else None
        return output if _or(return_dict, self.config.return_dict) else output.to_tuple()

    def disentangle_and_align(self, u, labels=None, sample_weights=None):
        """The config's arrangement: (aligned embedding, disentanglement), None for a room it leaves out."""
        if self.config.arrangement in ("mea", "mea_edrl") and not self.alignment.is_fitted:
            logger.warning_once("The alignment is not fitted yet: every recording gets the same scores.")
        if self.config.arrangement == "mea_edrl":
            if labels is not None and not self.alignment.is_fitted:
                raise RuntimeError(
                    "arrangement='mea_edrl' trains EDRL on the aligned embedding, and the alignment is not fitted yet. "
                    "Train with EdrlMeaTrainer, or give the stock Trainer an AlignmentCallback."
                )
            aligned = self.alignment([u])
            return aligned, self.disentanglement(aligned, labels, sample_weights)
        disentangled = self.disentanglement(u, labels, sample_weights) if self.disentanglement is not None else None
        if self.alignment is None or not self.alignment.is_fitted:
            return None, disentangled
        return self.alignment(self.alignment_blocks(u, disentangled)), disentangled

    def alignment_blocks(self, u, disentangled=None) -> list[torch.Tensor]:
        """X-blocks of MEA, by the config's arrangement."""
        if self.config.arrangement != "edrl_mea":
            return [u]
        return disentangled.blocks + [u] * self.config.align_speech_embedding

    def layer_statistics(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Pooled statistics (B, L+1, S') of every layer of the backbone: all that the heads see of a recording."""
        return self._run_backbone(input_values, attention_mask)[0]

    def _run_backbone(
        self, input_values, attention_mask=None, output_hidden_states=False, output_attentions=False
    ) -> tuple[torch.Tensor, BackboneOutput | None]:
        limit = int(self.config.max_window_seconds * self.config.sampling_rate)
        if input_values.shape[1] <= limit:
            frames = self.backbone(input_values, attention_mask, output_attentions=output_attentions)
            return self.pooling.statistics(self.pooling.moments(frames.hidden_states, frames.frame_mask)), frames
        lengths = own_samples(self.config.backbone_config, input_values, attention_mask)
        lengths = [input_values.shape[1]] * len(input_values) if lengths is None else lengths.tolist()
        # Recording by recording: windows then depend on its own length only, not on the batch it is in.
        rows = [
            self._encode_in_windows(row[: int(n)], limit, output_hidden_states, output_attentions)
            for row, n in zip(input_values, lengths, strict=True)
        ]
        statistics = torch.cat([self.pooling.statistics(moments) for moments, _ in rows])
        is_asked_for = output_hidden_states or output_attentions
        return statistics, joined_recordings([windows for _, windows in rows]) if is_asked_for else None

    def _encode_in_windows(self, waveform: torch.Tensor, limit: int, output_hidden_states, output_attentions):
        """Moments over all frames of a recording of any length (n,), and its windows where more than the moments is
        asked for; without them in memory bounded by one window."""
        config = self.config.backbone_config
        overlap = int(self.config.window_overlap_seconds * self.config.sampling_rate)
        windows, total = JoinedWindows(), None
        for start, end, first, last in iter_windows(config, len(waveform), limit, overlap):
            frames = self.backbone(waveform[None, start:end], output_attentions=output_attentions)
            kept = [layer[:, first:last] for layer in frames.hidden_states]
            moments = self.pooling.moments(kept, frames.frame_mask[:, first:last])
            total = moments if total is None else total.merge(moments)
            if output_hidden_states:
                windows.hidden_states.append(kept)
            if output_attentions:
                rows = [None if layer is None else layer[:, :, first:last] for layer in frames.attentions]
                windows.attentions.append((start // samples_per_frame(config), rows))
        return total, windows

    def train(self, mode: bool = True):
        """A wholly frozen backbone stays in evaluation mode: its dropout would only blur what cannot learn."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self


class EdrlMeaForAudioClassification(EdrlMeaPreTrainedModel):
    """Speech emotion classifier.

    Until the alignment of an arrangement that ends in MEA is fitted, the logits are those of EDRL's own classifier;
    from then on they come from the aligned embedding. [`stage`] says which.
    """

    def __init__(self, config: EdrlMeaConfig):
        super().__init__(config)
        self.edrl_mea = EdrlMeaModel(config)
        sizes = {"linear": config.speech_embedding_size, "mea": config.n_components, "edrl_mea": config.n_components}
        size = sizes.get(config.arrangement)  # the other arrangements end in EDRL and its own classifier
        self.classifier = nn.Linear(size, config.n_trained_labels) if size else None
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
        """What the logits are made from: "linear" (u), "disentanglement" (EDRL's embeddings of u), "alignment" (the
        aligned embedding), or "unfitted": an arrangement that starts with MEA, which is not fitted yet, so they say
        nothing."""
        if self.alignment is None:
            return "linear" if self.edrl_mea.disentanglement is None else "disentanglement"
        if self.alignment.is_fitted:
            return "alignment"
        return "disentanglement" if self.config.arrangement == "edrl_mea" else "unfitted"

    @property
    def ends_in_disentanglement(self) -> bool:
        """Whether the logits are those of EDRL's own classifier."""
        return self.classifier is None or self.stage == "disentanglement"

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        layer_statistics: torch.Tensor | None = None,
        sample_weights: torch.Tensor | None = None,
        speakers: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> EdrlMeaOutput:
        """As [`EdrlMeaModel.forward`]; with `labels` also the loss: EDRL's terms, and the cross-entropy of the
        classifier that the logits come from where that is another one. The logits are corrected by what [`adapt`]
        found, the terms of training are not.

        Args:
            speakers: (B,) places in `config.adapted_speakers`, -1 for somebody else; without them nobody's own biases
                count.
        """
        output, trained = self.run_trained(
            input_values,
            attention_mask,
            layer_statistics,
            labels,
            sample_weights,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        output.logits = self.output_adaptation(trained, torch.cat(self.label_embedding(output), -1), speakers)
        if input_values is not None and not self.training:
            output.logits = self.without_voice_uniform(output.logits, input_values, attention_mask)
        if labels is not None:
            if self.training:
                losses = output.losses or {}
                if not self.ends_in_disentanglement:
                    targets = as_targets(labels, self.config.n_trained_labels, sample_weights)
                    losses["aligned_classification"] = cross_entropy(trained, *targets)
            else:
                losses = {"classification": cross_entropy(output.logits, *as_targets(labels, self.config.num_labels))}
            output.loss, output.losses = sum(losses.values()), losses
        return output if _or(return_dict, self.config.return_dict) else output.to_tuple()

    def without_voice_uniform(self, logits, input_values, attention_mask=None) -> torch.Tensor:
        """Logits (B, C), where silence has the same for every emotion: no bias of the model decides on it.

        Silence is what varies by less than the rounding of 16-bit samples, so an offset counts as silence and speech
        does not, however faint. Noise above that is a recording like any other.
        """
        is_silent = variance_of(input_values, attention_mask) < self._silence
        return logits.masked_fill(is_silent[:, None], 0.0)

    @property
    def _silence(self) -> float:
        """SILENT_VARIANCE as the model sees it: the extractor's normalization divides by √(variance + 1e-7)."""
        if not self.config.normalize_waveform:
            return SILENT_VARIANCE
        return SILENT_VARIANCE / (SILENT_VARIANCE + NORMALIZATION_EPSILON)

    def run_trained(self, *inputs, **options) -> tuple[EdrlMeaOutput, torch.Tensor]:
        """What [`EdrlMeaModel`] says of the inputs, and the logits (B, C trained) before any adaptation."""
        output = self.edrl_mea(*inputs, **options)
        if self.ends_in_disentanglement:
            return output, output.logits
        features = output.speech_embedding if self.alignment is None else output.aligned_embedding
        if features is None:  # arrangement "mea", not fitted yet
            features = output.speech_embedding.new_zeros(len(output.speech_embedding), self.config.n_components)
        return output, self.classifier(features.to(self.dtype))

    def label_embedding(self, output: EdrlMeaOutput) -> list[torch.Tensor]:
        """Blocks (B, E_b) that weights for labels of the user's own are learned on: the aligned embedding and EDRL's,
        or the speech embedding where the arrangement has neither."""
        blocks = []
        if self.alignment is not None:
            aligned = output.aligned_embedding
            blocks += [
                output.speech_embedding.new_zeros(len(output.speech_embedding), self.config.n_components)
                if aligned is None
                else aligned
            ]
        if output.intra_class_embeddings is not None:
            blocks += [output.shared_embedding, output.intra_class_embeddings.flatten(1)]
        return blocks or [output.speech_embedding]

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
        so whatever is made of them stays true."""
        last = self.edrl_mea.disentanglement.classifier if self.ends_in_disentanglement else self.classifier
        for parameter in last.parameters():
            parameter.mul_(self.config.temperature / temperature)
        self.config.temperature = float(temperature)

    @property
    def is_backbone_frozen(self) -> bool:
        """Whether nothing before the speech embedding learns, so that its statistics can be computed once."""
        parts = (self.backbone, self.edrl_mea.pooling)
        return not any(parameter.requires_grad for part in parts for parameter in part.parameters())

    @torch.no_grad()
    def embed_recordings(self, recordings: Sequence, sampling_rate: int | None = None) -> torch.Tensor:
        """Layer statistics (N, L+1, S'), on the CPU, of recordings as [`load_recording`] takes them."""
        if isinstance(recordings, (str, os.PathLike, bytes)) or not len(recordings):
            raise ValueError(f"Give a list of at least one recording, not {recordings!r:.60}.")
        extract, was_training = self.feature_extractor(), self.training
        rate = sampling_rate or self.config.sampling_rate
        statistics = []
        self.eval()
        try:
            for start in range(0, len(recordings), EMBEDDING_BATCH):
                numbers = range(start, min(start + EMBEDDING_BATCH, len(recordings)))
                batch = [load_recording(recordings[i], rate, name=f"recording {i}") for i in numbers]
                inputs = extract(batch, sampling_rate=rate, return_tensors="pt").to(self.device)
                inputs["input_values"] = inputs["input_values"].to(self.dtype)
                statistics.append(self.edrl_mea.layer_statistics(**inputs).cpu())
        finally:
            self.train(was_training)
        return torch.cat(statistics)

    def adapt(self, recordings, expected="balanced", speakers=None, labels=None, sampling_rate: int | None = None):
        """Adapt to anybody's recordings, without labels or with a handful. No gradient; save the result like any model.

        One number a class is added to the logits, so that over these recordings they predict the expected mix. It is
        as strong as there is evidence: see `adaptation_prior` and `speaker_prior` of the config, and the report in
        `adaptation`. Adapting again starts from the trained model, but keeps labels that were learned.

        Args:
            recordings: paths, arrays, dicts as `datasets` makes them, in a list, generator or dataset; or a folder.
            expected: how often each emotion is heard in them. "balanced": equally. Shares by label, such as
                `{"neutral": 0.7}`, of which the labels left out have the rest. None: not known, and nothing is
                concluded from recordings without a label.
            speakers: who speaks in each; every speaker then has biases of their own, used where [`forward`] is told
                who speaks.
            labels: the emotion of each, None where not known; or a mapping from paths. Words that the model does not
                know become labels of it.
            sampling_rate: Hz of arrays; the model's own by default.

        Returns:
            the model itself.

        Raises:
            ValueError: before anything is embedded, where `expected`, `speakers` or `labels` do not fit; no usable
                recording. RecordingError: one that cannot be read.
        """
        adapt(self, recordings, expected, speakers, labels, sampling_rate)
        return self

    @property
    def adaptation(self) -> AdaptationReport | None:
        """What the last [`adapt`] was given, found and did; None where there was none."""
        return AdaptationReport(**self.config.adaptation) if self.config.adaptation else None

    def forget_adaptation(self) -> None:
        """Answer as trained: no biases, no labels of the user's own."""
        forget(self)

    def predict_timeline(self, recording, sampling_rate: float | None = None, **settings) -> Timeline:
        """Scores over time in windows of `window_s` seconds, one every `hop_s`; see [`TimelineStream`]."""
        return predict_timeline(self, recording, sampling_rate, **settings)

    def stream_timeline(self, sampling_rate: float | None = None, **settings) -> TimelineStream:
        """The same from chunks as they come: `push(chunk)` gives new segments, `finish()` the last."""
        return TimelineStream(self, sampling_rate, **settings)

    def explain(self, recording, sampling_rate: int | None = None) -> dict:
        """What decided for the winning emotion.

        Returns a dict: `label`, `logits` by label, `logit_contributions` by block (for the winning label; with the
        classifier's bias they sum to its logit) and, where the logits come from the alignment,
        `component_contributions` by block, k numbers each.
        """
        return explain(self, recording, sampling_rate)


def variance_of(waveforms: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Variance (B,) of each recording's own samples, of (B, n) waveforms."""
    waveforms = waveforms.float()
    own = torch.ones_like(waveforms) if mask is None else mask.to(waveforms)
    n_samples = own.sum(1).clamp_min(1)
    centered = (waveforms - ((waveforms * own).sum(1) / n_samples)[:, None]) * own
    return centered.square().sum(1) / n_samples


def _or(given: bool | None, otherwise: bool) -> bool:
    return otherwise if given is None else given


def _refuse_other_models(checkpoint: str | os.PathLike, where: dict) -> None:
    """transformers would only warn, and fill the model with random weights."""
    kind = PreTrainedConfig.get_config_dict(checkpoint, **where)[0].get("model_type", EdrlMeaConfig.model_type)
    if kind != EdrlMeaConfig.model_type:
        raise ValueError(
            f"{checkpoint} is a {kind} model, not an EDRL-MEA one. To put new heads on it: "
            f"EdrlMeaForAudioClassification.from_backbone({str(checkpoint)!r}, id2label=...)."
        )


def _let_others_read(folder: str | os.PathLike) -> None:
    """Give the weights the mode of other new files: safetensors makes them readable by their owner alone."""
    mode = os.stat(os.path.join(folder, "config.json")).st_mode
    for weights in Path(folder).glob("*.safetensors"):
        with contextlib.suppress(OSError):  # a disk that knows no modes
            weights.chmod(mode)


def _offer_auto_model(folder: str | os.PathLike) -> None:
    """Let `AutoModel` find the model without its classifier too, where the directory holds the code."""
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    if "auto_map" in config and "AutoModel" not in config["auto_map"]:
        config["auto_map"]["AutoModel"] = "modeling_edrl_mea.EdrlMeaModel"
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(config, indent=2, sort_keys=True) + "\n")
