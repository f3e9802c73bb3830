"""A corpus and noise to probe backbones with."""

from pathlib import Path

import numpy as np
import soundfile

EMOTIONS = ("anger", "happiness", "neutral", "sadness")


def write_corpus(folder: Path) -> Path:
    """48 noises of 4 speakers whose level of smoothing is their emotion."""
    rng = np.random.default_rng(0)
    rows = ["file_name,emotion,speaker"]
    for i in range(48):
        emotion = i % 4
        samples = rng.standard_normal(8000 + 400 * (i % 5))
        samples = np.convolve(samples, np.ones(1 + 3 * emotion) / (1 + 3 * emotion), "same")
        soundfile.write(folder / f"{i}.wav", 0.2 * samples, 16000)
        rows.append(f"{i}.wav,{EMOTIONS[emotion]},speaker{i // 12}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


def write_noise(folder: Path) -> Path:
    """Of three folds, which begin with silence."""
    for fold in (1, 4, 5):
        samples = np.random.default_rng(fold).standard_normal(12000) * 0.1
        samples[:4000] = 0
        soundfile.write(folder / f"{fold}-1.wav", samples, 16000)
    return folder
