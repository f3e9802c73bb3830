"""Frames: their number is stock WavLM's, and windows take each of them once."""

import pytest
import torch
from transformers import WavLMConfig, WavLMModel

from modeling_edrl_mea.frames import frame_lengths, iter_windows, receptive_field, samples_per_frame


def test_frame_lengths_count_the_frames_of_stock_wavlm(tiny_backbone_config):
    base = WavLMConfig()
    assert (samples_per_frame(base), receptive_field(base)) == (320, 400)
    model = WavLMModel(tiny_backbone_config)
    lengths = torch.arange(receptive_field(tiny_backbone_config), 9000, 37)
    expected = model._get_feat_extract_output_lengths(lengths)
    assert torch.equal(frame_lengths(tiny_backbone_config, lengths), expected)
    assert [frame_lengths(tiny_backbone_config, int(n)) for n in lengths] == expected.tolist()
    assert frame_lengths(base, 399) == 0 and frame_lengths(base, 400) == 1 and frame_lengths(base, 0) == 0


@pytest.mark.parametrize("max_frames, overlap_frames", [(1, 0), (5, 2), (8, 3), (30, 10)])
def test_windows_take_every_frame_once(tiny_backbone_config, max_frames, overlap_frames):
    config, hop = tiny_backbone_config, samples_per_frame(tiny_backbone_config)
    field = receptive_field(config)
    longest, overlap = field + (max_frames - 1) * hop + 11, overlap_frames * hop
    for n_samples in range(field, 60 * hop, 97):
        taken = []
        for start, end, first, last in iter_windows(config, n_samples, longest, overlap):
            assert start % hop == 0 and end <= n_samples and end - start <= longest
            assert 0 <= first < last <= frame_lengths(config, end - start)
            assert start == 0 or first * hop * 2 >= overlap
            after = frame_lengths(config, end - start) - last  # frames of context that are not taken
            is_final = start // hop + last == frame_lengths(config, n_samples)
            assert is_final or after * hop * 2 >= overlap
            taken += range(start // hop + first, start // hop + last)
        assert taken == list(range(frame_lengths(config, n_samples)))


def test_windows_without_room_for_new_frames_are_refused(tiny_backbone_config):
    with pytest.raises(ValueError, match="must exceed the overlap"):
        list(iter_windows(tiny_backbone_config, 90_000, 8_000, 8_000))
    with pytest.raises(ValueError, match="shorter than one frame"):
        list(iter_windows(tiny_backbone_config, 100, 8_000, 0))
