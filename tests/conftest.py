"""What several tests share: where real recordings lie, and one tiny model."""

from pathlib import Path

import pytest
import torch

REAL_RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real corpora (emodb, ravdess, nemo, ased, noise, rir); the test skips where it is absent."""
    if not REAL_RECORDINGS.is_dir():
        pytest.skip("needs real recordings, which are not part of the project")
    return REAL_RECORDINGS


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_backbone_config():
    """A WavLM of 2 layers and 0.1 M parameters, hop 20 ms, whose feature encoder normalises by layer."""
    from transformers import WavLMConfig

    return WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16, 16, 16, 16),
        conv_kernel=(10, 8, 8, 8),
        conv_stride=(5, 4, 4, 4),
        feat_extract_norm="layer",
        do_stable_layer_norm=False,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        num_buckets=32,
        max_bucket_distance=80,
        mask_time_prob=0.0,
    )
