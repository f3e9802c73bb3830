"""A corpus whose emotions are tones, so that any model that learns at all learns it; and a backbone to train on it."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

EMOTIONS = {"anger": 600.0, "happiness": 400.0, "neutral": 200.0, "sadness": 100.0}  # Hz
PITCHES = {**EMOTIONS, "fear": 800.0}  # which only some corpora have


def tone(emotion: str, speaker: int, take: int, corpus: str = "") -> np.ndarray:
    rng = np.random.default_rng([len(emotion), speaker, take, *corpus.encode()])
    seconds = np.arange(6000) / 16_000
    pitch = PITCHES[emotion] * (1 + 0.02 * speaker)
    return (0.3 * np.sin(2 * np.pi * pitch * seconds) + 0.02 * rng.standard_normal(6000)).astype(np.float32)


def write_corpus(folder: Path, n_speakers: int, emotions=EMOTIONS, n_takes: int = 3) -> Path:
    folder.mkdir(parents=True)
    lines = ["file_name,emotion,speaker"]
    for emotion in emotions:
        for speaker in range(n_speakers):
            for take in range(n_takes):
                name = f"{emotion}_{speaker}_{take}.wav"
                soundfile.write(folder / name, tone(emotion, speaker, take, folder.name), 16_000)
                lines.append(f"{name},{emotion},{folder.name}_{speaker}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def write_backbone(folder: Path, config, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    # A copy: models note in a config which attention they use, and the stock one knows eager attention only.
    WavLMModel(WavLMConfig.from_dict(config.to_dict(), attn_implementation="eager")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder
