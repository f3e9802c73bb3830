"""Multiblock PLS equals the textbook, and says clearly what it cannot do."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_edrl_mea import MultiblockPLS

SIZES = (12, 7, 21)


def latent_data(n_rows, sizes=SIZES, q=6, rank=8, noise=0.3, seed=0):
    """Blocks and a target driven by common factors of clearly different strength."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((n_rows, rank)) * 1.5 ** -np.arange(rank)
    blocks = [
        factors @ rng.standard_normal((rank, p)) * rng.uniform(0.5, 2, p) + noise * rng.standard_normal((n_rows, p))
        for p in sizes
    ]
    y = factors @ rng.standard_normal((rank, q)) + noise * rng.standard_normal((n_rows, q))
    return blocks, y


def textbook_nipals(blocks, y, n_components, scale_blocks=True):
    """MBPLS by NIPALS with super-score deflation (Westerhuis et al. 1998), on data, not on moments."""
    blocks = [(b - b.mean(0)) / b.std(0, ddof=1) for b in blocks]
    if scale_blocks:
        blocks = [b / np.sqrt(b.shape[1]) for b in blocks]
    y_mean, y_scale = y.mean(0), y.std(0, ddof=1)
    y = (y - y_mean) / y_scale
    predicted = np.zeros_like(y)
    super_scores, super_weights, block_scores = [], [], []
    for _ in range(n_components):
        u, before = y[:, [0]], 0
        for _ in range(20000):
            weights = [b.T @ u / (u.T @ u) for b in blocks]
            weights = [w / np.linalg.norm(w) for w in weights]
            scores = np.hstack([b @ w for b, w in zip(blocks, weights, strict=True)])
            super_weight = scores.T @ u / (u.T @ u)
            super_weight /= np.linalg.norm(super_weight)
            t = scores @ super_weight
            c = y.T @ t / (t.T @ t)
            u = y @ c / (c.T @ c)
            if np.linalg.norm(t - before) < 1e-13 * np.linalg.norm(t):
                break
            before = t
        predicted += t @ c.T
        blocks = [b - t @ (b.T @ t / (t.T @ t)).T for b in blocks]
        y = y - t @ c.T
        super_scores.append(t), super_weights.append(super_weight**2), block_scores.append(scores)
    return {
        "super_scores": np.hstack(super_scores),
        "super_weights": np.hstack(super_weights),
        "block_scores": np.stack(block_scores, axis=2),
        "predicted": predicted * y_scale + y_mean,
    }


def assert_same_directions(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    cosines = (ours * theirs).sum(0) / np.linalg.norm(ours, axis=0) / np.linalg.norm(theirs, axis=0)
    assert ours.shape == theirs.shape
    assert np.abs(cosines).min() >= 1 - 1e-9


@pytest.mark.parametrize(
    "n_rows, sizes, q, k",
    [
        (200, SIZES, 6, 5),
        (200, SIZES, 1, 5),
        (200, (5, 4), 30, 5),
        (25, SIZES, 6, 6),
        (300, (90, 80), 100, 7),
    ],
    ids=["usual", "one target", "q > P", "N < P", "Lanczos"],
)
def test_unscaled_blocks_give_pls_regression(n_rows, sizes, q, k):
    cross_decomposition = pytest.importorskip("sklearn.cross_decomposition")
    blocks, y = latent_data(n_rows, sizes, q)
    ours = MultiblockPLS(k, scale_blocks=False).fit(blocks, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = cross_decomposition.PLSRegression(k, tol=1e-29, max_iter=5000).fit(np.hstack(blocks), y)
    x = np.hstack(blocks)
    assert_same_directions(ours.transform(blocks), theirs.transform(x))
    assert_same_directions(ours.weights_, theirs.x_weights_)
    assert_same_directions(ours.rotations_, theirs.x_rotations_)
    np.testing.assert_allclose(ours.predict(blocks), theirs.predict(x).reshape(n_rows, q), rtol=0, atol=1e-8)
    np.testing.assert_allclose(
        torch.cat(ours.inverse_transform(ours.transform(blocks)), dim=1),
        theirs.inverse_transform(theirs.transform(x)),
        atol=1e-8,
    )


@pytest.mark.parametrize("n_rows, q, k", [(200, 6, 5), (25, 4, 6), (200, 1, 4), (60, 90, 6)])
def test_scaled_blocks_give_textbook_nipals(n_rows, q, k):
    blocks, y = latent_data(n_rows, q=q)
    ours, theirs = MultiblockPLS(k).fit(blocks, y), textbook_nipals(blocks, y, k)
    assert_same_directions(ours.transform(blocks), theirs["super_scores"])
    np.testing.assert_allclose(ours.super_weights_, theirs["super_weights"], atol=1e-8)
    for block in range(len(blocks)):
        assert_same_directions(ours.block_scores(blocks)[:, block], theirs["block_scores"][:, block])
    np.testing.assert_allclose(ours.predict(blocks), theirs["predicted"], atol=1e-8)


def test_a_large_offset_changes_nothing():
    blocks, y = latent_data(500)
    near = MultiblockPLS(5).fit(blocks, y)
    far = MultiblockPLS(5).fit([b + 1e6 for b in blocks], y - 1e6)
    np.testing.assert_allclose(far.rotations_, near.rotations_, atol=1e-8)
    np.testing.assert_allclose(far.transform([b + 1e6 for b in blocks]), near.transform(blocks), atol=1e-8)
    np.testing.assert_allclose(far.explained_variance_y_, near.explained_variance_y_, atol=1e-8)


def test_constant_and_duplicated_columns_are_harmless():
    blocks, y = latent_data(200)
    plain = MultiblockPLS(4, scale_blocks=False).fit(blocks, y)
    constant = [np.hstack([b, np.full((200, 1), 0.1)]) for b in blocks]
    with_constant = MultiblockPLS(4, scale_blocks=False).fit(constant, np.hstack([y, np.ones((200, 1))]))
    np.testing.assert_allclose(with_constant.transform(constant), plain.transform(blocks), atol=1e-9)
    np.testing.assert_allclose(with_constant.predict(constant)[:, -1], 1, atol=1e-12)
    doubled = [np.hstack([b, b]) for b in blocks]  # twice everything, each of half the weight
    assert_same_directions(
        MultiblockPLS(4).fit(doubled, y).transform(doubled), textbook_nipals(blocks, y, 4)["super_scores"]
    )


def test_components_end_when_the_cross_covariance_is_used_up_and_that_is_no_warning(caplog, recwarn):
    blocks, y = latent_data(300, rank=3, noise=0)
    caplog.set_level("INFO")
    pls = MultiblockPLS(10).fit(blocks, y)
    assert "used up after 3 components; 10 were asked for" in caplog.text and not recwarn.list
    assert pls.n_components_ == 3 and pls.rotations_.shape == (sum(SIZES), 3)
    np.testing.assert_allclose(pls.predict(blocks), y, atol=1e-8)


@pytest.mark.parametrize("n_rows", [2, 3, 8])
def test_fewer_rows_than_columns_give_at_most_rows_less_one(n_rows):
    blocks, y = latent_data(n_rows)
    pls = MultiblockPLS(20).fit(blocks, y)
    assert pls.n_components_ == n_rows - 1
    np.testing.assert_allclose(pls.predict(blocks), y, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    q=st.integers(1, 12),
    n_rows=st.integers(3, 60),
    k=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_shares_are_shares_whatever_the_shapes(sizes, q, n_rows, k, seed):
    blocks, y = latent_data(n_rows, sizes, q, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pls = MultiblockPLS(k).fit(blocks, y)
    found, scores = pls.n_components_, pls.transform(blocks)
    assert 1 <= found <= k and scores.shape == (n_rows, found)
    np.testing.assert_allclose(pls.super_weights_.sum(0), 1, atol=1e-9)
    np.testing.assert_allclose(pls.vip_.square().mean(), 1, atol=1e-9)
    np.testing.assert_allclose(scores.std(0), pls.score_scales_, rtol=1e-6)
    assert pls.explained_variance_y_.min() >= -1e-9 and pls.explained_variance_y_.sum() <= 1 + 1e-9
    assert pls.explained_variance_x_.min() >= -1e-9 and pls.explained_variance_x_.sum() <= 1 + 1e-9
    residual = torch.as_tensor(y) - pls.predict(blocks)
    total = ((y - y.mean(0)) / y.std(0, ddof=1)) ** 2
    left = (residual / pls.y_scale_).square().sum() / total.sum()
    np.testing.assert_allclose(1 - left, pls.explained_variance_y_.sum(), atol=1e-8)


def test_scores_are_uncorrelated():
    blocks, y = latent_data(300)
    correlation = np.corrcoef(MultiblockPLS(8).fit(blocks, y).transform(blocks).T)
    np.testing.assert_allclose(correlation, np.eye(8), atol=1e-9)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda blocks, y: ([blocks[0][:-1], *blocks[1:]], y), "differ in rows"),
        (lambda blocks, y: (blocks, y[:-2]), "differ in rows"),
        (lambda blocks, y: (blocks[:-1], y), "Widths changed"),
        (lambda blocks, y: ([b[:, :-1] for b in blocks], y), "Widths changed"),
        (lambda blocks, y: (blocks, y[:, :2]), "Widths changed"),
        (
            lambda blocks, y: ([blocks[0], np.where(blocks[1] > 1, np.nan, blocks[1]), blocks[2]], y),
            "block 1 has a NaN",
        ),
        (lambda blocks, y: (blocks, np.where(y > 1, np.inf, y)), "y has a NaN or infinite"),
        (lambda blocks, y: ([], y), "No blocks"),
        (lambda blocks, y: ([blocks[0][None], *blocks[1:]], y), "must be a real matrix"),
    ],
)
def test_bad_chunks_are_refused_and_leave_the_statistics_as_they_were(change, message):
    blocks, y = latent_data(50)
    pls = MultiblockPLS(3).partial_fit(blocks, y)
    products, mean = pls.moments.products.clone(), pls.moments.mean.clone()
    with pytest.raises(ValueError, match=message):
        pls.partial_fit(*change(blocks, y))
    assert pls.moments.n_rows == 50
    assert torch.equal(pls.moments.products, products) and torch.equal(pls.moments.mean, mean)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_what_cannot_be_solved_is_said():
    blocks, y = latent_data(50)
    with pytest.raises(ValueError, match="y is constant"):
        MultiblockPLS(3).fit(blocks, np.full_like(y, 0.1))
    with pytest.raises(ValueError, match="blocks are constant"):
        MultiblockPLS(3).fit([np.full_like(b, 0.1) for b in blocks], y)
    with pytest.raises(ValueError, match="at least 2 rows"):
        MultiblockPLS(3).fit([b[:1] for b in blocks], y[:1])
    with pytest.raises(ValueError, match="squares overflow"):
        MultiblockPLS(3).fit([b * 1e200 for b in blocks], y)
    with pytest.raises(ValueError, match="No rows seen"):
        MultiblockPLS(3).solve()
    with pytest.raises(ValueError, match="Not solved yet"):
        MultiblockPLS(3).transform(blocks)
    with pytest.raises(ValueError, match="at least 1"):
        MultiblockPLS(0)
    with pytest.raises(ValueError, match="the solution is for"):
        MultiblockPLS(3).fit(blocks, y).transform(blocks[:2])
