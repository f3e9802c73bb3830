"""What several tests share: where real recordings lie, and one tiny model."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

REAL_RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real corpora (emodb, ravdess, nemo, ased, noise, rir); the test skips where it is absent."""
    if not REAL_RECORDINGS.is_dir():
        pytest.skip("needs real recordings, which are not part of the project")
    return REAL_RECORDINGS


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The models are tiny, and threads that wait for one another are slow on a machine with other work."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_backbone_config():
    """A WavLM of 2 layers and 0.1 M parameters, hop 20 ms, whose feature encoder normalizes by layer."""
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
        num_conv_pos_embedding_groups=2,  # of 16 channels: with fewer torch 2.14 is wrong in bfloat16 on AMX
        num_buckets=32,
        max_bucket_distance=80,
        mask_time_prob=0.0,
    )


EMOTIONS = {0: "anger", 1: "happiness", 2: "neutral", 3: "sadness"}
ARRANGEMENTS = ["linear", "edrl", "edrl_mea"]
STATES = [(name, fitted) for name in ARRANGEMENTS for fitted in (False, True) if fitted or "mea" in name]

every_arrangement = pytest.mark.parametrize("arrangement", ARRANGEMENTS)
every_state = pytest.mark.parametrize(("arrangement", "fitted"), STATES)


def noise_recordings(count: int, seconds: float = 0.4, seed: int = 0) -> list[np.ndarray]:
    """Noise of 16 kHz whose loudness and color differ from recording to recording."""
    generator = np.random.default_rng(seed)
    recordings = []
    for _ in range(count):
        white = generator.normal(size=int(16_000 * seconds * generator.uniform(0.8, 1.2)))
        color = generator.uniform(0, 0.9)
        colored = white[1:] - color * white[:-1]
        recordings.append((generator.uniform(0.02, 0.3) * colored).astype(np.float32))
    return recordings


def inputs_of(model, recordings):
    """What `model(**inputs)` takes for recordings of 16 kHz."""
    return model.feature_extractor()(recordings, sampling_rate=16_000, return_tensors="pt")


@pytest.fixture(scope="session")
def tiny_model(tiny_backbone_config):
    """Factory of untrained models with fitted standardization: `tiny_model("edrl_mea", fitted=False, **config)`.

    `fitted` says whether the alignment, where the arrangement has one, holds a solution.
    """
    from modeling_edrl_mea import EdrlMeaForAudioClassification, MultiblockPLS
    from modeling_edrl_mea.backbone import LengthAwareWavLM

    recordings = noise_recordings(24)
    torch.manual_seed(0)
    weights = LengthAwareWavLM(copy.deepcopy(tiny_backbone_config)).state_dict()
    known = []  # statistics: all models have the same backbone

    def build(arrangement: str = "edrl", fitted: bool = True, **config) -> EdrlMeaForAudioClassification:
        config.setdefault("id2label", EMOTIONS)
        backbone = copy.deepcopy(tiny_backbone_config)
        model = EdrlMeaForAudioClassification.from_backbone(backbone, arrangement=arrangement, **config).eval()
        model.backbone.load_state_dict(weights)
        if not known:
            known.append(model.embed_recordings(recordings))
        (statistics,) = known
        model.edrl_mea.speech_embedding.fit(statistics)
        if fitted and model.alignment is not None:
            heads = model.edrl_mea
            u = heads.speech_embedding(statistics)
            pls = MultiblockPLS(model.config.n_components).fit(heads.disentanglement(u).blocks, u)
            model.alignment.load_solution(pls)
        return model

    return build


@pytest.fixture(scope="session")
def model_folder(tiny_model, tmp_path_factory) -> Path:
    """Where a tiny model is saved, to be read only."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("edrl_mea").save_pretrained(folder)
    return folder
