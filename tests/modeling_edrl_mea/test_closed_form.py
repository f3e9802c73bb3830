"""What is solved rather than learned: MEA, and the classifier that EDRL starts as."""

import pytest
import torch

from modeling_edrl_mea import MultiblockPLS, closed_form
from modeling_edrl_mea.embeddings import Embeddings
from tests.conftest import noise_recordings

RECORDINGS = noise_recordings(24)


def embeddings(model, n_speakers: int = 4) -> Embeddings:
    """24 recordings and a copy of each, shifted as noise would."""
    statistics = model.embed_recordings(RECORDINGS)
    rows = torch.arange(len(statistics))
    data = Embeddings(statistics, rows % 4, [str(int(row) // 4 % n_speakers) for row in rows], rows)
    return data.with_copies([statistics + 0.1 * torch.randn_like(statistics)])


def test_edrls_blocks_are_aligned_to_the_speech_embedding(tiny_model):
    model = tiny_model("edrl_mea", fitted=False, n_components=3)
    data = embeddings(model)
    closed_form.fit_alignment(model, data)
    output = model.edrl_mea(layer_statistics=data.layer_statistics)
    blocks = [output.shared_embedding, *output.intra_class_embeddings.unbind(1)]
    assert [block.shape[1] for block in blocks] == [model.config.block_size] * 5
    expected = MultiblockPLS(3).fit(blocks, output.speech_embedding)
    found = model.alignment
    assert found.is_fitted
    torch.testing.assert_close(found.rotations.double(), expected.rotations_, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.y_loadings.double(), expected.y_loadings_, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("classifier", ["regression", "discriminant"])
def test_edrl_starts_as_the_classifier_of_the_baseline(tiny_model, classifier):
    plain, model = (tiny_model(arrangement, classifier=classifier) for arrangement in ("linear", "edrl"))
    data = embeddings(model)
    assert closed_form.start_disentanglement(model, data) == closed_form.train_classifier(plain, data)
    expected, found = (one(layer_statistics=data.layer_statistics).logits for one in (plain, model))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
