"""What tests of pretraining share: tones and noise in folders, tiny teachers, and the batches of a run."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from transformers import WavLMModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from train.pretraining.mixtures import MixtureStream
from train.pretraining.recordings import Recordings
from train.pretraining.student import backbone_config
from train.pretraining.training_run import export

CONFIG = backbone_config()

TINY = dict(
    conv_dim=[16, 16, 16, 16],
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


def tone(hz: float, seconds: float) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(int(16000 * seconds)) / 16000).astype(np.float32)


def write_recordings(speech: Path, noise: Path) -> tuple[Path, Path]:
    for i in range(6):
        soundfile.write(speech / f"{i}.wav", tone(100 + 40 * i, 0.4 + 0.15 * i), 16000)
    for fold in (1, 4):
        samples = np.random.default_rng(fold).standard_normal(8000) * 0.1
        soundfile.write(noise / f"{fold}-1.wav", samples, 16000)
    return speech, noise


def write_whisper(folder: Path) -> str:
    """A tiny one that knows nothing."""
    sizes = dict(d_model=24, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32, max_source_positions=400)
    torch.manual_seed(0)
    WhisperModel(WhisperConfig(**sizes, decoder_layers=1, decoder_ffn_dim=8)).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return str(folder)


def write_wavlm(folder: Path) -> str:
    """As [`write_whisper`]."""
    config = backbone_config(**TINY)
    return str(export(config, WavLMModel(config).state_dict(), folder))


def settings_of_batches(**others) -> SimpleNamespace:
    """Those of scripts/pretrain_backbone.py that decide what a batch is, short crops, two in a batch."""
    shares = dict(whole_share=0.2, noisy_share=0.55, varied_share=0.0)
    return SimpleNamespace(**dict(seed=0, batch_size=2, crop_seconds=1.0) | shares | others)


def stream_of(folders: tuple[Path, Path], cache: Path, **others) -> MixtureStream:
    speech = Recordings.build(cache / "speech", [str(folders[0])], workers=1)
    noise = Recordings.build(cache / "noise", [str(folders[1])], ["4-"], workers=1)
    return MixtureStream(speech, noise, None, settings_of_batches(**others), CONFIG)
