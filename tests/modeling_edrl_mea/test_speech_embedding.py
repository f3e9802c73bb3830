"""From frames to the speech embedding: pooling, standardization, adaptation."""

from types import SimpleNamespace

import torch

from modeling_edrl_mea.speech_embedding import SpeechEmbedding, frame_moments

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
