"""Tiny checkpoints of every encoder that can be a backbone, and what transformers itself makes of a recording."""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    HubertConfig,
    SeamlessM4TFeatureExtractor,
    UniSpeechConfig,
    UniSpeechSatConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# With fewer channels, or fewer in a group, torch 2.14's wide convolutions are wrong in bfloat16 on AMX.
CONVOLUTIONS = {"conv_dim": (32,) * 4, "conv_kernel": (10, 8, 8, 8), "conv_stride": (5, 4, 4, 4)}
POSITIONS = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
USUAL = {**SIZES, **CONVOLUTIONS, **POSITIONS, "vocab_size": 8}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WHISPER = {
    **{"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48},
    **{"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "max_target_positions": 8},
    **{"vocab_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3},
}

ENCODERS = {
    "WavLM": lambda: WavLMConfig(**USUAL),
    "wav2vec 2.0": lambda: Wav2Vec2Config(**USUAL),
    "wav2vec 2.0, large": lambda: Wav2Vec2Config(**USUAL, **LARGE),
    "Wav2Vec2-Conformer": lambda: Wav2Vec2ConformerConfig(**USUAL, conv_depthwise_kernel_size=7),
    "HuBERT": lambda: HubertConfig(**USUAL),
    "data2vec-audio": lambda: Data2VecAudioConfig(**USUAL | {"num_conv_pos_embeddings": 2}, conv_pos_kernel_size=5),
    "UniSpeech": lambda: UniSpeechConfig(**USUAL),
    "UniSpeech-SAT": lambda: UniSpeechSatConfig(**USUAL, **LARGE),
    "Wav2Vec2-BERT": lambda: Wav2Vec2BertConfig(**SIZES, conv_depthwise_kernel_size=7),
    "Whisper": lambda: WhisperConfig(**WHISPER),
}


def stock_model(name: str):
    """In evaluation mode, with weights that leave no term of the model at zero or one."""
    torch.manual_seed(0)
    config = ENCODERS[name]()
    config._attn_implementation = "eager"  # transformers' WavLM has no other
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def feature_extractor(name: str):
    if name == "Whisper":
        return WhisperFeatureExtractor(return_attention_mask=False)
    if name == "Wav2Vec2-BERT":
        return SeamlessM4TFeatureExtractor()
    return Wav2Vec2FeatureExtractor(do_normalize="large" in name)


def write_checkpoint(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """As it would lie on the Hub."""
    stock_model(name).to(dtype).save_pretrained(folder)
    feature_extractor(name).save_pretrained(folder)
    return folder


@torch.no_grad()
def hidden_states_of_stock(name: str, waveform: np.ndarray) -> list[torch.Tensor]:
    """Of one recording at 16 kHz, by transformers' own feature extractor and encoder."""
    model, extract = stock_model(name), feature_extractor(name)
    if name != "Whisper":
        output = model(**extract(waveform, sampling_rate=16_000, return_tensors="pt"), output_hidden_states=True)
        return [*output.hidden_states[:-1], output.last_hidden_state]
    silence = np.zeros(8_000, np.float32)
    heard = np.concatenate([waveform, silence])
    features = extract(heard, sampling_rate=16_000, padding="do_not_pad", return_tensors="pt")["input_features"]
    features = features[..., : features.shape[2] // 2 * 2]
    encoder, n_frames = model.encoder, features.shape[2] // 2
    encoder.config.max_source_positions = n_frames  # else it wants 30 s
    positions = torch.nn.Embedding(n_frames, encoder.config.d_model)
    positions.weight.copy_(encoder.embed_positions.weight[:n_frames])
    encoder.embed_positions = positions
    output = encoder(features, output_hidden_states=True)
    return [*output.hidden_states[:-1], output.last_hidden_state]
