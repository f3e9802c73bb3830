from pathlib import Path

import numpy as np
import torch

from modeling_edrl_mea.frames import frame_lengths
from tests.support.pretraining import CONFIG, stream_of


def test_a_batch_is_a_function_of_seed_and_step(folders, tmp_path):
    stream = stream_of(folders, tmp_path)
    first, again, other = stream[3], stream[3], stream[4]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["noisy"].numpy(), other["noisy"].numpy())


def test_padding_is_silent_and_never_masked(folders, tmp_path):
    batch = stream_of(folders, tmp_path, batch_size=6)[0]
    assert len(set(batch["lengths"].tolist())) > 1
    for noisy, mask, length in zip(batch["noisy"], batch["mask"], batch["lengths"], strict=True):
        assert (noisy[length:] == 0).all()
        assert not mask[frame_lengths(CONFIG, length) :].any()


def test_noise_kept_for_testing_is_not_heard(folders, tmp_path):
    stream = stream_of(folders, tmp_path)
    assert [Path(file).name for file in stream.noise.files] == ["1-1.wav"]
