"""Recordings longer than a window: the frames and statistics of the whole, whatever company they are in."""

import numpy as np
import pytest
import torch

from modeling_edrl_mea.frames import frame_lengths
from modeling_edrl_mea.windows import run_in_windows


@pytest.fixture
def model(tiny_model):
    return tiny_model("linear", max_window_seconds=0.5, window_overlap_seconds=0.2)


def waveform(seconds: float) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(0.1 * rng.standard_normal(int(seconds * 16_000)).astype(np.float32))


@torch.no_grad()
def test_frames_of_all_windows_together_are_those_that_the_statistics_are_of(model):
    recording = waveform(1.3)[None]
    statistics, frames = run_in_windows(model.backbone, model.config, recording, None, True, True)
    layers = torch.stack(frames.hidden_states, 1)
    assert layers.shape[2] == frame_lengths(model.config.backbone_config, recording.shape[1])
    whole = torch.cat([layers.mean(2), layers.std(2, correction=0)], -1)
    torch.testing.assert_close(statistics, whole, atol=1e-5, rtol=1e-4)
    sums = frames.attentions[0].sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@torch.no_grad()
def test_a_long_recording_gives_the_same_alone_and_padded_beside_a_longer_one(model):
    short, long = waveform(0.9), waveform(1.4)
    batch, mask = torch.zeros(2, len(long)), torch.ones(2, len(long), dtype=torch.long)
    batch[0, : len(short)], batch[1], mask[0, len(short) :] = short, long, 0
    together, frames = run_in_windows(model.backbone, model.config, batch, mask, True)
    alone, own = run_in_windows(model.backbone, model.config, short[None], None, True)
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)
    n_frames = own.hidden_states[0].shape[1]
    torch.testing.assert_close(frames.hidden_states[-1][:1, :n_frames], own.hidden_states[-1], atol=1e-5, rtol=1e-4)
    assert not frames.hidden_states[-1][0, n_frames:].any()
