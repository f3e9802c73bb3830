"""From frames to the speech embedding: pooling, standardization, adaptation."""

from types import SimpleNamespace

import pytest
import torch

from modeling_edrl_mea import EdrlMeaConfig
from modeling_edrl_mea.frames import valid_frames
from modeling_edrl_mea.speech_embedding import SpeechEmbedding, frame_moments, frame_weights
from tests.support.voice import vowels

LAYERS, WIDTH = 3, 8


def speech_embedding(**settings) -> SpeechEmbedding:
    defaults = {
        "n_layers": LAYERS,
        "statistics_size": WIDTH,
        "standardization_clip": 6.0,
        "layer_combination": "weighted_sum",
    }
    return SpeechEmbedding(SimpleNamespace(**(defaults | settings)))


def statistics(count: int = 200) -> torch.Tensor:
    """(count, L+1, S) correlated, of any mean and scale."""
    mixing = torch.randn(LAYERS * WIDTH, LAYERS * WIDTH)
    return (torch.randn(count, LAYERS * WIDTH) @ mixing + 5).view(count, LAYERS, WIDTH)


def test_moments_of_two_parts_merge_into_those_of_the_whole():
    frames = [torch.randn(2, 50, WIDTH) + 3 for _ in range(LAYERS)]
    mask = torch.ones(2, 50, dtype=torch.bool)
    whole = frame_moments(frames, mask).statistics()
    first = frame_moments([layer[:, :13] for layer in frames], mask[:, :13])
    second = frame_moments([layer[:, 13:] for layer in frames], mask[:, 13:])
    torch.testing.assert_close(first.merge(second).statistics(), whole, atol=1e-5, rtol=1e-5)


def test_pooling_is_the_mean_and_deviation_of_valid_frames_only():
    frames = torch.randn(1, 20, WIDTH)
    mask = torch.arange(20)[None] < 12
    pooled = frame_moments([frames], mask).statistics()[0, 0]
    valid = frames[0, :12]
    torch.testing.assert_close(pooled, torch.cat([valid.mean(0), valid.std(0, unbiased=False)]))


def weights(waveform: torch.Tensor, sample_lengths=None, **settings) -> torch.Tensor:
    config = EdrlMeaConfig(**settings)
    return frame_weights(config, waveform, valid_frames(config.backbone_config, waveform, sample_lengths))


def test_speech_counts_and_silence_does_not_however_loud_and_long_either_is():
    voice, silence = torch.from_numpy(vowels(1.0))[None], torch.zeros(1, 48_000)
    alone, surrounded = weights(voice)[0], weights(torch.cat([silence, voice, silence], 1))[0]
    assert alone.mean() > 0.9 and alone.sum().item() == pytest.approx(surrounded.sum().item(), rel=0.05)
    torch.testing.assert_close(weights(0.2 * voice)[0], alone, atol=1e-3, rtol=0)


def test_a_frame_at_the_threshold_counts_half():
    tone = torch.sin(torch.arange(16_000) * 2 * torch.pi * 0.05)
    quieter = torch.cat([tone, 0.01 * tone])[None]  # by 40 dB
    assert weights(quieter, pause_threshold_db=40.0)[0, -1].item() == pytest.approx(0.5, abs=0.01)
    assert weights(quieter, pause_threshold_db=60.0)[0, -1] > 0.99
    assert (weights(quieter, pause_threshold_db=None) == 1).all()


def test_frames_of_a_silent_recording_count_the_same():
    assert weights(torch.zeros(1, 8000)).unique().numel() == 1


def test_padding_changes_no_weight():
    voice = torch.from_numpy(vowels(1.0))[None]
    alone = weights(voice)
    padded = weights(torch.nn.functional.pad(voice, (0, 20_000)), torch.tensor([voice.shape[1]]))
    n_frames = alone.shape[1]
    assert torch.equal(padded[:, :n_frames], alone) and not padded[:, n_frames:].any()


def test_one_frame_gives_finite_statistics_and_gradients():
    frames = torch.randn(2, 1, WIDTH, requires_grad=True)
    pooled = frame_moments([frames], torch.ones(2, 1, dtype=torch.bool)).statistics()
    pooled.sum().backward()
    assert pooled.isfinite().all() and frames.grad.isfinite().all()


def test_fitted_statistics_have_zero_mean_and_unit_variance():
    module, rows = speech_embedding(standardization_clip=100.0), statistics()
    assert not module.is_fitted
    module.fit(rows)
    standardized = module.standardize(rows)
    assert module.is_fitted and module.n_recordings == len(rows)
    torch.testing.assert_close(standardized.mean(0), torch.zeros(LAYERS, WIDTH), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardized.std(0, unbiased=False), torch.ones(LAYERS, WIDTH))


def test_a_constant_statistic_becomes_zero():
    module, rows = speech_embedding(), statistics()
    rows[:, 0, 0] = 7.0
    module.fit(rows)
    assert (module.standardize(rows)[:, 0, 0] == 0).all()


def test_an_outlier_is_clipped():
    module, rows = speech_embedding(standardization_clip=2.0), statistics()
    module.fit(rows)
    assert module(rows * 1e6).abs().max() <= 2.0


def test_layers_start_equal_and_their_weights_learn():
    module, rows = speech_embedding(), statistics()
    module.fit(rows)
    u = module(rows)
    torch.testing.assert_close(u, module.standardize(rows).mean(1))
    u.square().sum().backward()
    assert module.layer_logits.grad.abs().sum() > 0


def test_the_embedding_stays_exact_under_autocast_and_casts():
    module = speech_embedding(layer_combination="concatenate")
    rows = statistics()
    module.fit(rows)
    expected = module(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(rows), expected)
    assert torch.equal(module.to(torch.bfloat16)(rows), expected)
    assert all(buffer.dtype == torch.float32 for buffer in module.buffers())
