"""EDRL: what each loss is zero for, and what it reaches."""

from types import SimpleNamespace

import pytest
import torch

from modeling_edrl_mea.disentanglement import (
    LOSSES,
    ClassWiseLinear,
    EmotionDisentanglement,
    between_class_share,
    cross_entropy,
    squared_correlation,
)

CLASSES, WIDTH, BLOCK = 3, 10, 4


def disentanglement(**settings) -> EmotionDisentanglement:
    defaults = {f"{name}_weight": 1.0 for name in LOSSES} | {
        "n_outputs": CLASSES,
        "n_emotions": CLASSES,
        "n_attributes": 0,
        "attribute_loss": "ccc",
        "speech_embedding_size": WIDTH,
        "block_size": BLOCK,
    }
    module = EmotionDisentanglement(SimpleNamespace(**(defaults | settings)))
    for part in module.modules():
        if isinstance(part, ClassWiseLinear):
            torch.nn.init.normal_(part.weight, std=0.3)
    return module


KINDS = {"emotions": (3, 0), "attributes": (0, 3), "both": (1, 2)}  # each as many outputs as there are classes
ABSENT = {"emotions": {"attribute"}, "attributes": {"classification"}, "both": set()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 6])
def test_every_loss_is_there_finite_and_reaches_some_weight(batch, kind):
    n_emotions, n_attributes = KINDS[kind]
    module = disentanglement(n_emotions=n_emotions, n_attributes=n_attributes)
    labels = torch.arange(batch) % n_emotions if n_emotions else None
    ratings = torch.rand(batch, n_attributes) if n_attributes else None
    result = module(torch.randn(batch, WIDTH), labels, None, ratings)
    assert set(result.losses) == set(LOSSES) - ABSENT[kind]
    assert all(loss.isfinite() and loss.dim() == 0 for loss in result.losses.values())
    assert result.intra_class_embeddings.shape == (batch, CLASSES, BLOCK)
    assert result.shared_embedding.shape == (batch, BLOCK) and result.logits.shape == (batch, CLASSES)
    sum(result.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_a_weight_scales_its_loss_and_zero_leaves_it_out():
    u, labels = torch.randn(6, WIDTH), torch.arange(6) % CLASSES
    module = disentanglement()
    plain = module(u, labels).losses
    module.loss_weights |= {"decorrelation": 0.0, "reconstruction": 0.5}
    weighted = module(u, labels).losses
    assert "decorrelation" not in weighted
    torch.testing.assert_close(weighted["reconstruction"], 0.5 * plain["reconstruction"])


def test_decorrelation_is_zero_for_independent_and_one_for_equal_features():
    one_feature = torch.randn(10_000, 1)
    assert squared_correlation(one_feature[:, None], one_feature).item() == pytest.approx(1, abs=1e-4)
    assert squared_correlation(-3 * one_feature[:, None] + 2, one_feature).item() == pytest.approx(1, abs=1e-4)
    # Of n independent samples the squared correlation is 1/n on average.
    independent = squared_correlation(torch.randn(10_000, CLASSES, BLOCK), torch.randn(10_000, BLOCK))
    assert independent.item() < 10 / 10_000
    # Exactly orthogonal: a period of a sine and of a cosine.
    phase = torch.linspace(0, 2 * torch.pi, 101)[:-1, None]
    assert squared_correlation(phase.sin()[:, None], phase.cos()).item() < 1e-10


def test_decorrelation_survives_features_that_do_not_vary():
    constant = torch.ones(5, BLOCK, requires_grad=True)
    loss = squared_correlation(torch.randn(5, CLASSES, BLOCK), constant)
    loss.backward()
    assert loss == 0 and constant.grad.isfinite().all()


def test_shared_invariance_is_zero_where_class_means_are_equal_and_one_where_classes_are_points():
    targets = torch.eye(CLASSES).repeat(4, 1)
    offsets = torch.randn(4, 1, BLOCK).expand(4, CLASSES, BLOCK).reshape(-1, BLOCK)
    assert between_class_share(offsets, targets).item() == pytest.approx(0, abs=1e-10)
    points = torch.randn(CLASSES, BLOCK).repeat(4, 1)
    assert between_class_share(points, targets).item() == pytest.approx(1, abs=1e-5)
    assert 0 <= between_class_share(torch.randn(12, BLOCK), targets) <= 1


def test_shared_invariance_does_not_need_every_class_in_the_batch():
    targets = torch.eye(CLASSES)[[0, 0, 1, 1]]
    shared = torch.randn(4, BLOCK, requires_grad=True)
    between_class_share(shared, targets).backward()
    assert shared.grad.isfinite().all()


def test_only_the_own_class_learns_to_reconstruct():
    module = disentanglement()
    losses = module(torch.randn(5, WIDTH), torch.full((5,), 1)).losses
    losses["reconstruction"].backward()
    for weight in (module.decoder.weight, module.intra_output.weight):
        reached = weight.grad.abs().sum((1, 2)) > 0
        assert reached.tolist() == [False, True, False]
    assert module.shared_output.weight.grad.abs().sum() > 0


def test_reconstruction_is_zero_where_the_own_decoder_rebuilds_the_embedding():
    module = disentanglement(block_size=WIDTH)
    with torch.no_grad():
        module.intra_output.weight.copy_(torch.eye(WIDTH).expand(CLASSES, -1, -1))
        module.decoder.weight.zero_()
        module.decoder.weight[2, :WIDTH] = torch.eye(WIDTH)
    u = torch.randn(4, WIDTH)
    assert module(u, torch.full((4,), 2)).losses["reconstruction"] < 1e-10
    assert module(u, torch.full((4,), 0)).losses["reconstruction"] > 0.1


def test_intra_class_loss_is_the_cross_entropy_of_each_encoders_own_score():
    module, u, labels = disentanglement(), torch.randn(6, WIDTH), torch.arange(6) % CLASSES
    result = module(u, labels)
    scores = torch.stack(
        [
            result.intra_class_embeddings[:, c] @ module.score.weight[c, :, 0] + module.score.bias[c, 0]
            for c in range(CLASSES)
        ],
        dim=1,
    )
    torch.testing.assert_close(result.losses["intra_class"], torch.nn.functional.cross_entropy(scores, labels))


def test_ids_and_one_hot_labels_give_the_same_losses():
    module, u, labels = disentanglement(), torch.randn(6, WIDTH), torch.arange(6) % CLASSES
    by_id, by_row = module(u, labels).losses, module(u, torch.eye(CLASSES)[labels]).losses
    for name in by_id:
        torch.testing.assert_close(by_id[name], by_row[name])


def test_weighted_samples_count_as_often_as_their_weight():
    logits, targets = torch.randn(3, CLASSES), torch.eye(CLASSES)
    twice = cross_entropy(logits[[0, 0, 1, 2]], targets[[0, 0, 1, 2]], torch.ones(4)) * 4
    torch.testing.assert_close(cross_entropy(logits, targets, torch.tensor([2.0, 1.0, 1.0])) * 3, twice)


def test_evaluation_is_deterministic_and_each_recording_its_own():
    module, u = disentanglement().eval(), torch.randn(6, WIDTH)
    together = module(u).logits
    assert torch.equal(module(u).logits, together)
    torch.testing.assert_close(torch.cat([module(row[None]).logits for row in u]), together)


def test_encoders_of_emotions_share_no_weights():
    module, u = disentanglement(), torch.randn(2, WIDTH)
    module(u).intra_class_embeddings[:, 0].sum().backward()
    assert (module.intra_output.weight.grad[1:] == 0).all()
    assert module.shared_output.weight.grad is None


def test_edrl_can_start_as_a_linear_classifier_that_still_learns():
    module = disentanglement().eval()
    weight, bias, u = torch.randn(CLASSES, WIDTH), torch.randn(CLASSES), torch.randn(5, WIDTH)
    module.start_from(weight, bias)
    logits = u @ weight.T + bias
    result = module(u)
    assert torch.allclose(result.logits, logits, atol=1e-5)
    assert torch.allclose(module.score(result.intra_class_embeddings)[..., 0], logits, atol=1e-5)
    losses = module.train()(u, torch.arange(5) % CLASSES).losses
    sum(losses.values()).backward()
    unused = module.classifier.weight.grad[:, :BLOCK]  # of the shared embedding, which counts for nothing at first
    assert unused.abs().sum() > 0
