"""The alignment module applies a solved multiblock PLS, in any precision and through any way of loading."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from modeling_edrl_mea import EmbeddingAlignment, MultiblockPLS

SIZES, Q, K = (8, 5, 9), 6, 7


class AlignmentConfig(PretrainedConfig):
    model_type = "alignment_in_a_model"


class AlignmentModel(PreTrainedModel):
    """The smallest model that holds an alignment, with the hooks a model needs."""

    config_class = AlignmentConfig

    def __init__(self, config):
        super().__init__(config)
        self.projection = nn.Linear(4, 4)
        self.alignment = EmbeddingAlignment(SIZES, Q, K)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, EmbeddingAlignment):
            module.reset()

    def forward(self, blocks):
        return self.alignment(blocks)


@pytest.fixture(scope="module")
def solved():
    """Blocks (200 rows), and a solution with 5 of 7 components."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((200, 5))
    blocks = [torch.tensor(3 + factors @ rng.standard_normal((5, p))).float() for p in SIZES]
    y = factors @ rng.standard_normal((5, Q))
    return blocks, MultiblockPLS(5).fit(blocks, y)


@pytest.fixture
def alignment(solved):
    module = EmbeddingAlignment(SIZES, Q, K)
    module.load_solution(solved[1])
    return module


def test_aligned_embedding_is_the_super_scores_at_unit_variance(solved, alignment):
    blocks, pls = solved
    aligned = alignment(blocks)
    assert aligned.shape == (200, K) and aligned.dtype == torch.float32
    torch.testing.assert_close(aligned[:, :5].double(), pls.transform(blocks) / pls.score_scales_, atol=1e-4, rtol=0)
    torch.testing.assert_close(aligned[:, :5].std(0), torch.ones(5))


def test_components_that_were_not_found_are_exactly_zero(solved, alignment):
    assert alignment(solved[0])[:, 5:].eq(0).all()
    assert alignment.super_weights[:, 5:].eq(0).all()


def test_contributions_add_up_to_the_aligned_embedding(solved, alignment):
    contributions = alignment.contributions(solved[0])
    assert contributions.shape == (200, len(SIZES), K)
    torch.testing.assert_close(contributions.sum(1), alignment(solved[0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.half(),
        lambda module: module.bfloat16(),
        lambda module: module.to(torch.bfloat16),
        lambda module: nn.Sequential(nn.Linear(2, 2), module).to(torch.bfloat16)[1],
        lambda module: module.half().float(),
    ],
)
def test_buffers_keep_their_precision_when_the_model_is_cast(solved, alignment, cast):
    expected = alignment(solved[0])
    cast(alignment)
    assert {buffer.dtype for buffer in alignment.buffers()} == {torch.float32}
    assert torch.equal(alignment(solved[0]), expected)


def test_double_raises_the_precision(solved, alignment):
    assert alignment.double()(solved[0]).dtype == torch.float64


def test_low_precision_blocks_and_autocast_are_aligned_in_float32(solved, alignment):
    blocks = [block.bfloat16() for block in solved[0]]
    expected = alignment([block.float() for block in blocks])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(alignment(blocks), expected)
        assert alignment.contributions(blocks).dtype == torch.float32
    assert torch.equal(alignment(blocks), expected)


def test_state_dict_round_trip_carries_the_solution(solved, alignment):
    fresh = EmbeddingAlignment(SIZES, Q, K)
    assert not fresh.is_fitted and fresh(solved[0]).eq(0).all()
    fresh.load_state_dict(alignment.state_dict())
    assert fresh.is_fitted and torch.equal(fresh(solved[0]), alignment(solved[0]))
    fresh.load_state_dict(EmbeddingAlignment(SIZES, Q, K).state_dict())
    assert not fresh.is_fitted
    assert copy.deepcopy(alignment).is_fitted


def test_sizes_do_not_depend_on_the_state(alignment):
    unfitted = EmbeddingAlignment(SIZES, Q, K).state_dict()
    assert {name: values.shape for name, values in alignment.state_dict().items()} == {
        name: values.shape for name, values in unfitted.items()
    }
    assert set(unfitted) == {name for name, _ in alignment.named_buffers()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fitted", [False, True])
def test_from_pretrained_restores_both_states_without_rounding(solved, tmp_path, dtype, fitted):
    model = AlignmentModel(AlignmentConfig())
    if fitted:
        model.alignment.load_solution(solved[1])
    model.save_pretrained(tmp_path)
    loaded, info = AlignmentModel.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.alignment.refresh() == fitted and loaded.projection.weight.dtype == dtype
    for name, buffer in model.alignment.named_buffers():
        assert torch.equal(buffer, loaded.alignment.get_buffer(name)), name
    assert torch.equal(loaded(solved[0]), model(solved[0]))


def test_a_model_cast_before_saving_keeps_the_solution(solved, tmp_path):
    model = AlignmentModel(AlignmentConfig())
    model.alignment.load_solution(solved[1])
    expected = model(solved[0])
    model.bfloat16().save_pretrained(tmp_path)
    assert torch.equal(AlignmentModel.from_pretrained(tmp_path)(solved[0]), expected)


def test_a_checkpoint_without_alignment_leaves_it_unfitted(solved, tmp_path):
    model = AlignmentModel(AlignmentConfig())
    state = {name: values for name, values in model.state_dict().items() if not name.startswith("alignment")}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = AlignmentModel.from_pretrained(tmp_path)
    assert not loaded.alignment.refresh()
    assert loaded.alignment.scales.eq(1).all() and loaded(solved[0]).eq(0).all()


def test_reset_unfits_also_after_from_pretrained(solved, tmp_path, alignment):
    alignment.reset()
    assert not alignment.is_fitted and alignment(solved[0]).eq(0).all()
    model = AlignmentModel(AlignmentConfig())
    model.alignment.load_solution(solved[1])
    model.save_pretrained(tmp_path)
    loaded = AlignmentModel.from_pretrained(tmp_path)
    loaded.alignment.refresh()
    loaded.alignment.reset()
    assert not loaded.alignment.is_fitted and loaded(solved[0]).eq(0).all()


def test_a_shorter_solution_replaces_a_longer_one_completely(solved, alignment):
    blocks, _ = solved
    shorter = MultiblockPLS(2).fit(blocks, blocks[0][:, :Q])
    alignment.load_solution(shorter)
    fresh = EmbeddingAlignment(SIZES, Q, K)
    fresh.load_solution(shorter)
    for name, buffer in fresh.named_buffers():
        assert torch.equal(buffer, alignment.get_buffer(name)), name


def test_solutions_that_do_not_fit_are_refused(solved):
    with pytest.raises(ValueError, match="blocks"):
        EmbeddingAlignment(SIZES[::-1], Q, K).load_solution(solved[1])
    with pytest.raises(ValueError, match="target"):
        EmbeddingAlignment(SIZES, Q + 1, K).load_solution(solved[1])
    with pytest.raises(ValueError, match="do not fit into 4"):
        EmbeddingAlignment(SIZES, Q, 4).load_solution(solved[1])


def test_the_module_exports_as_one_graph(solved, alignment):
    blocks = tuple(block[:4] for block in solved[0])
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(alignment, (blocks,), dynamic_shapes=(tuple({0: rows} for _ in blocks),))
    longer = tuple(block[:50] for block in solved[0])
    torch.testing.assert_close(exported.module()(longer), alignment(longer))


def test_the_plot_shows_the_super_weights_and_the_variance_explained(solved, alignment):
    figure = alignment.plot(["shared", "anger", "sadness"])
    shares, explained = figure.axes
    bars = torch.tensor([[bar.get_height() for bar in container] for container in shares.containers])
    torch.testing.assert_close(bars, 100 * solved[1].super_weights_.float())  # 5 of 7 components were found
    assert [container.get_label() for container in shares.containers] == ["shared", "anger", "sadness"]
    assert max(bar.get_y() + bar.get_height() for bar in shares.patches) == pytest.approx(100, abs=1e-3)
    for line, found in zip(explained.lines, ("explained_variance_y_", "explained_variance_x_"), strict=True):
        np.testing.assert_allclose(line.get_ydata()[1:], 100 * getattr(solved[1], found).cumsum(0), rtol=1e-5)


def test_what_cannot_be_plotted_is_said(alignment):
    with pytest.raises(ValueError, match="2 names for 3 blocks"):
        alignment.plot(["a", "b"])
    with pytest.raises(ValueError, match="not fitted"):
        EmbeddingAlignment(SIZES, Q, K).plot()
