"""The metric in which MEA compares speech embeddings."""

import pytest
import torch

from modeling_edrl_mea import MultiblockPLS, closed_form
from modeling_edrl_mea.closed_form import NoiseMetric

from .test_closed_form import embeddings

SIZE = 6


@pytest.fixture
def speech():
    """Clean embeddings (n, 6), noisy copies that stray along one direction, and that direction."""
    clean = torch.randn(80, SIZE, dtype=torch.float64) @ torch.randn(SIZE, SIZE, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.randn(SIZE, dtype=torch.float64), dim=0)
    return clean, clean + 3 * torch.randn(80, 1, dtype=torch.float64) * direction, direction


def metric_of(clean, noisy, shrinkage=100.0) -> NoiseMetric:
    return NoiseMetric((noisy - clean).T @ (noisy - clean) / len(clean), shrinkage)


def test_only_what_noise_moves_is_shrunk(speech):
    clean, noisy, direction = speech
    metric = metric_of(clean, noisy)
    across = torch.randn(SIZE, dtype=torch.float64)
    across -= (across @ direction) * direction
    assert torch.allclose(metric.apply(direction[None]).norm(), torch.tensor(101.0, dtype=torch.float64) ** -0.5)
    assert torch.allclose(metric.apply(across[None]).norm(), across.norm())


def test_without_noisy_copies_the_metric_is_euclidean(speech):
    clean = speech[0]
    assert torch.equal(metric_of(clean, clean).apply(clean), clean)


@pytest.mark.parametrize("targets", [["clean_original"], ["labels", "own_speech", "clean_original"]])
def test_a_solution_in_the_metric_is_one_affine_map_of_the_embeddings(speech, targets):
    clean, noisy, _ = speech
    metric, labels = metric_of(clean, noisy), torch.eye(2, dtype=torch.float64)[torch.arange(len(clean)) % 2]
    parts = {"clean_original": clean, "own_speech": noisy, "labels": labels}
    moved = [parts[name] if name == "labels" else metric.apply(parts[name]) for name in targets]
    pls = MultiblockPLS(3, scale_blocks=False, standardize=False).fit([metric.apply(noisy)], torch.cat(moved, 1))
    scores, predicted = pls.transform([metric.apply(noisy)]), pls.predict([metric.apply(noisy)])
    rebuilt = pls.inverse_transform(scores)[0]
    metric.undo(pls, targets)
    assert torch.allclose(pls.transform([noisy]), scores)
    assert torch.allclose(metric.apply(pls.inverse_transform(scores)[0]), rebuilt)
    widths = [parts[name].shape[1] for name in targets]
    for name, before, after in zip(
        targets, predicted.split(widths, 1), pls.predict([noisy]).split(widths, 1), strict=True
    ):
        assert torch.allclose(after if name == "labels" else metric.apply(after), before), name


def test_shrinking_noise_brings_noisy_copies_nearer_to_their_originals(tiny_model):
    strays = []
    for shrinkage in (0.0, 1000.0):
        model = tiny_model(
            "mea", fitted=False, alignment_target=["clean_original"], n_components=4, noise_shrinkage=shrinkage
        )
        data = embeddings(model)
        closed_form.fit_alignment(model, data)
        aligned = model.edrl_mea(layer_statistics=data.layer_statistics).aligned_embedding
        strays.append(float((aligned - aligned[data.clean_rows]).square().sum() / aligned.square().sum()))
    assert strays[1] < 0.9 * strays[0]


def test_components_keep_their_variances_and_the_whole_has_one_a_component(tiny_model):
    model = tiny_model("mea", fitted=False, n_components=4, standardize_components=False)
    data = embeddings(model)
    closed_form.fit_alignment(model, data)
    variances = model.edrl_mea(layer_statistics=data.layer_statistics).aligned_embedding.var(0)
    assert variances.mean().item() == pytest.approx(1, rel=1e-4)
    assert variances.std() > 0.1
