"""Spectrograms within the model are those of transformers' feature extractors."""

import numpy as np
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor, WhisperFeatureExtractor

from modeling_edrl_mea.log_mel_encoders import kaldi_log_mel, whisper_log_mel


def noise(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(int(seconds * 16_000))).astype(np.float32)


def test_whispers_is_that_of_transformers():
    recording = noise(3.0)
    expected = WhisperFeatureExtractor()(recording, sampling_rate=16_000, padding=False, return_tensors="pt")
    found = whisper_log_mel(torch.from_numpy(recording)[None], 80)
    torch.testing.assert_close(found, expected["input_features"], atol=2e-3, rtol=0)


@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_kaldis_is_that_of_transformers_at_any_level(level):
    recording = level * noise(2.0)
    extractor = SeamlessM4TFeatureExtractor()
    expected = extractor(recording, sampling_rate=16_000, padding=False, return_tensors="pt")["input_features"]
    found = kaldi_log_mel(torch.from_numpy(recording)[None], extractor.num_mel_bins)
    torch.testing.assert_close(found, expected.float(), atol=1e-2, rtol=1e-3)


def test_how_loud_others_in_the_batch_are_changes_nothing():
    quiet, loud = 0.01 * noise(1.0), noise(1.0)
    together = whisper_log_mel(torch.from_numpy(np.stack([quiet, loud])), 80)
    torch.testing.assert_close(together[:1], whisper_log_mel(torch.from_numpy(quiet)[None], 80))
