"""MEA is fitted to the target that the config names, from cached embeddings and from audio alike."""

from itertools import chain, combinations

import pytest
import torch

from modeling_edrl_mea import MultiblockPLS, closed_form
from modeling_edrl_mea.embeddings import Embeddings
from tests.conftest import noise_recordings

TARGETS = ["own_speech", "clean_original", "labels"]
COMBINATIONS = [list(some) for some in chain.from_iterable(combinations(TARGETS, n) for n in (1, 2, 3))]
RECORDINGS = noise_recordings(24)
PLAIN = {"standardize_components": True, "fitted": False}  # MEA and nothing around it


def embeddings(model, n_speakers: int = 4) -> Embeddings:
    """24 recordings and a copy of each, shifted as noise would."""
    statistics = model.embed_recordings(RECORDINGS)
    rows = torch.arange(len(statistics))
    data = Embeddings(statistics, rows % 4, [str(int(row) // 4 % n_speakers) for row in rows], rows)
    return data.with_copies([statistics + 0.1 * torch.randn_like(statistics)])


@pytest.mark.parametrize("arrangement", ["mea_edrl", "edrl_mea"])
@pytest.mark.parametrize("target", COMBINATIONS, ids="+".join)
def test_alignment_is_fitted_to_the_target_by_name(tiny_model, arrangement, target):
    model = tiny_model(arrangement, **PLAIN, alignment_target=target, n_components=3)
    data = embeddings(model)
    closed_form.fit_alignment(model, data)
    heads, size = model.edrl_mea, model.config.block_size
    u, clean = heads.speech_embedding(data.layer_statistics), data.layer_statistics[:24].repeat(2, 1, 1)
    columns = {
        "own_speech": u,
        "clean_original": heads.speech_embedding(clean),
        "labels": torch.eye(4)[data.labels],
    }
    blocks = [u]
    if arrangement == "edrl_mea":
        output = heads(layer_statistics=data.layer_statistics)
        blocks = [output.shared_embedding, *output.intra_class_embeddings.unbind(1)]
        assert [block.shape[1] for block in blocks] == [size] * 5
    expected = MultiblockPLS(3).fit(blocks, torch.cat([columns[name] for name in target], dim=1))
    found = model.alignment
    assert found.is_fitted and found.y_loadings.shape[0] == sum(columns[name].shape[1] for name in target)
    torch.testing.assert_close(found.rotations.double(), expected.rotations_, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.y_loadings.double(), expected.y_loadings_, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arrangement", ["edrl", "mea_edrl"])
def test_edrl_starts_as_the_regression_of_the_arrangement_without_it(tiny_model, arrangement):
    plain = tiny_model("linear" if arrangement == "edrl" else "mea")
    model = tiny_model(arrangement, start_from_regression=True)
    data = embeddings(model)
    assert closed_form.start_disentanglement(model, data) == closed_form.train_classifier(plain, data)
    expected, found = (one(layer_statistics=data.layer_statistics).logits for one in (plain, model))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
