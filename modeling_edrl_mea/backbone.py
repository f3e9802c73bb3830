"""The backbone: any speech encoder of transformers, behind one interface.

A backbone is an `nn.Module` that takes waveforms (batch, samples), padded on the right, with their attention mask,
and returns a [`BackboneOutput`]: hidden states of every layer, and which frames lie within the recordings. What it says
of a recording depends on that recording alone. It has `config`, its `layers`, and `freeze_feature_encoder()`. Its
frames follow from its config (`frames.py`).
"""

import os

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedConfig

from .frames import CONVOLUTIONAL_TYPES, LOG_MEL_STEPS
from .log_mel_encoders import Wav2Vec2BertBackbone, WhisperBackbone
from .stock_encoders import StockEncoder
from .wavlm import LengthAwareWavLM

BACKBONES: dict[str, type[nn.Module]] = {
    **dict.fromkeys(CONVOLUTIONAL_TYPES, StockEncoder),
    "wavlm": LengthAwareWavLM,
    "whisper": WhisperBackbone,
    "wav2vec2-bert": Wav2Vec2BertBackbone,
}
LOG_MEL_SETTINGS = {"sampling_rate": 16_000, "n_fft": 400, "hop_length": 160}  # what `log_mel_encoders.py` computes


def build_backbone(config: PreTrainedConfig) -> nn.Module:
    """The backbone of a config, with random weights."""
    return BACKBONES[config.model_type](config)


def load_backbone(checkpoint: str | os.PathLike) -> nn.Module:
    """The encoder of a published checkpoint, in float32 and evaluation mode; of Whisper without its decoder.

    Raises ValueError where the checkpoint is of another architecture, or lacks weights of the encoder.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    check_architecture(config, checkpoint)
    config.dtype = None  # that of the file; the model's own decides
    backbone = build_backbone(config)
    loader = LengthAwareWavLM if config.model_type == "wavlm" else AutoModel
    pretrained, report = loader.from_pretrained(checkpoint, dtype="float32", output_loading_info=True)
    weights = pretrained.state_dict()
    place = "" if config.model_type in ("wavlm", "whisper") else "model."
    weights = {place + name: value for name, value in weights.items()}
    wanted = backbone.state_dict().keys()
    missing = [place + name for name in report["missing_keys"]]
    lacking = [name for name in missing if name in wanted and not name.endswith("masked_spec_embed")]
    if lacking or not wanted <= weights.keys():
        raise ValueError(f"{checkpoint} is no whole {config.model_type} checkpoint: it lacks {lacking[:3]} …")
    backbone.load_state_dict({name: weights[name] for name in wanted})
    return backbone.eval()


def in_half_where_exact(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights with those of the backbone in float16, if that loses nothing of any; the config says float32,
    which they are again once loaded."""
    backbone = {
        name: value for name, value in state_dict.items() if ".backbone." in name or name.startswith("backbone.")
    }
    if any(value.dtype != torch.float32 or not torch.equal(value.half().float(), value) for value in backbone.values()):
        return state_dict
    return state_dict | {name: value.half() for name, value in backbone.items()}


def check_architecture(config: PreTrainedConfig, name: str | os.PathLike) -> None:
    if config.model_type not in BACKBONES:
        raise ValueError(f"{name} is a {config.model_type} model; the backbone must be one of {sorted(BACKBONES)}.")


def input_settings(checkpoint: str | os.PathLike, config: PreTrainedConfig) -> dict:
    """`sampling_rate`, and whether a published backbone was trained on normalized waveforms (`normalize_waveform`), by
    its preprocessor config. ValueError where it does not say, or says what cannot be done."""
    hears_log_mel = config.model_type in LOG_MEL_STEPS
    try:
        extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
        if not hears_log_mel:
            return {"sampling_rate": extractor.sampling_rate, "normalize_waveform": bool(extractor.do_normalize)}
    except (OSError, AttributeError, ValueError) as error:
        if not hears_log_mel:
            raise ValueError(
                f"{checkpoint} has no preprocessor_config.json that says whether the backbone was trained on "
                "normalized waveforms. Pass normalize_waveform=True (WavLM-large) or False (WavLM-base, base-plus)."
            ) from error
        return {"normalize_waveform": False}
    for name, value in LOG_MEL_SETTINGS.items():
        if getattr(extractor, name, value) != value:
            raise ValueError(f"{checkpoint} was trained with {name}={getattr(extractor, name)}; only {value} is known.")
    return {"normalize_waveform": False}
