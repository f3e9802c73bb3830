"""Multiblock partial least squares (MBPLS) that streams any amount of data over any number of processes.

MBPLS with super-score deflation (Westerhuis, Kourti & MacGregor 1998, J. Chemom. 12:301) on blocks scaled by
1/sqrt(p_b) equals PLS2 on the concatenated blocks. It is therefore solved from the joint second moments
alone, at a cost that does not depend on the number of rows.

Notation: n rows, B blocks of p_b columns, P = p_1 + ... + p_B, q target columns, k components.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .pls_moments import JointMoments, ScaledMoments, as_blocks, as_matrix
from .pls_solver import kernel_pls

logger = logging.getLogger(__name__)


class MultiblockPLS:
    """Multiblock partial least squares from streamed second moments.

    Args:
        n_components: components k to look for; fewer are found where the cross-covariance is used up.
        scale_blocks: divide block b by sqrt(p_b), so that a wide block does not win by its width.
        standardize: divide every column by its standard deviation (n - 1 degrees of freedom).

    Columns are always centered, and constant ones left out. Blocks are a list of matrices (n, p_b), torch or numpy,
    or one matrix; y is (n, q) or (n,). Results are float64 tensors on the CPU.

    Attributes (after `solve`; K = n_components_):
        n_components_: components found, K <= n_components.
        block_sizes_: (p_1, ..., p_B).
        n_rows_: rows seen.
        x_mean_, x_scale_: (P,); scaled X is (X - x_mean_) / x_scale_, block scaling included.
        y_mean_, y_scale_: (q,).
        weights_: (P, K) of unit length, on the deflated scaled X; largest entry positive.
        rotations_: (P, K); super scores T = scaled X @ rotations_.
        loadings_: (P, K); scaled X is about T @ loadings_.T.
        y_loadings_: (q, K); scaled Y is about T @ y_loadings_.T.
        super_weights_: (B, K) share of each block in each component; columns sum to 1.
        score_scales_: (K,) standard deviation of each super score on the training rows.
        explained_variance_x_, explained_variance_y_: (K,) share of the variance of X, Y each component adds.
        explained_variance_blocks_: (B, K) the same for each block, of the block's own variance.
        vip_: (P,) variable importance in projection (Wold 1993); mean square 1 over non-constant columns.
    """

    def __init__(self, n_components: int, scale_blocks: bool = True, standardize: bool = True):
        if int(n_components) < 1:
            raise ValueError(f"n_components must be at least 1, not {n_components}.")
        self.n_components = int(n_components)
        self.scale_blocks, self.standardize = scale_blocks, standardize
        self.reset()

    def reset(self) -> MultiblockPLS:
        """Forget all rows seen; a solution stays until the next `solve`."""
        self.moments = JointMoments()
        return self

    def partial_fit(self, blocks, y) -> MultiblockPLS:
        """Take in a chunk of rows; the order and size of chunks do not matter.

        Args:
            blocks: matrices (m, p_1) ... (m, p_B).
            y: (m, q) or (m,).

        Raises:
            ValueError: shapes do not agree with one another or with earlier chunks, or a value is NaN or
                infinite. The statistics are then left as they were.
        """
        self.moments.update(as_blocks(blocks), as_matrix(y, "y"))
        return self

    def merge(self, other: MultiblockPLS) -> MultiblockPLS:
        """Take in, in place, what `other` has seen (other rows of the same blocks and target)."""
        self.moments.add(other.moments)
        return self

    def reduce(self, accelerator) -> MultiblockPLS:
        """Add up, in place, what all processes have seen; every process must call this, once.

        A process may have seen no rows at all.

        Args:
            accelerator: an `accelerate.Accelerator`, or anything with its `num_processes`, `device`, `gather`
                and `reduce`.

        Raises:
            ValueError: processes saw blocks of different widths (on all processes).
            RuntimeError: called again before `reset`, which would count rows twice.
        """
        self.moments.reduce(accelerator)
        return self

    def fit(self, blocks, y) -> MultiblockPLS:
        """Solve for these rows alone, and forget them: to go on adding rows, use `partial_fit` and `solve`."""
        return self.reset().partial_fit(blocks, y).solve().reset()

    def solve(self, accelerator=None) -> MultiblockPLS:
        """Compute the learned attributes from the rows seen, at a cost that does not depend on their number.

        Args:
            accelerator: where given, its first process solves, and all receive the same solution; call
                `reduce` before.

        Raises:
            ValueError: fewer than two rows, nothing in X covaries with Y (all-constant Y, say), or squares of the
                values overflow.
        """
        if accelerator is None or accelerator.num_processes == 1:
            self._learn()
        else:
            self._learn_from_first(accelerator)
        if self.n_components_ < self.n_components:  # no warning: little data has few directions, and all are used
            logger.info(
                "The cross-covariance of blocks and target was used up after %d components; %d were asked for.",
                self.n_components_,
                self.n_components,
            )
        return self

    def _learn(self) -> None:
        scaled = self.moments.scaled(self.scale_blocks, self.standardize)
        components = kernel_pls(scaled.x_times, scaled.x_squares, scaled.xy_products, self.n_components)
        *matrices, score_squares = components
        if len(score_squares) == 0:
            raise ValueError(_why_nothing_covaries(scaled))
        self.weights_, self.rotations_, self.loadings_, self.y_loadings_ = matrices
        self.n_components_ = len(score_squares)
        self.block_sizes_, self.n_rows_ = self.moments.block_sizes, self.moments.n_rows
        self.x_mean_, self.y_mean_ = scaled.x_mean, scaled.y_mean
        self.x_scale_, self.y_scale_ = (
            torch.where(inverse > 0, 1 / inverse, 1) for inverse in (scaled.x_inverse, scaled.y_inverse)
        )
        self._explain(scaled, score_squares)

    def _explain(self, scaled: ScaledMoments, score_squares: Tensor) -> None:
        """What each component adds on the rows seen. Scores are uncorrelated, so that their shares just add up."""
        self.score_scales_ = (score_squares / (self.n_rows_ - 1)).sqrt()
        self.explained_variance_y_ = score_squares * self.y_loadings_.square().sum(0) / scaled.y_square
        explained = score_squares * self._sum_over_blocks(self.loadings_.square())
        variances = self._sum_over_blocks(scaled.x_squares)
        self.explained_variance_x_ = explained.sum(0) / variances.sum()
        # A constant block has no variance to explain.
        self.explained_variance_blocks_ = explained / torch.where(variances > 0, variances, 1)[:, None]
        shares = self.weights_.square()
        self.super_weights_ = self._sum_over_blocks(shares)
        gains = self.explained_variance_y_
        n_varying = int((scaled.x_inverse > 0).sum())
        self.vip_ = (n_varying * (shares @ gains) / gains.sum()).sqrt()

    def _sum_over_blocks(self, values: Tensor) -> Tensor:
        """(P, ...) → (B, ...)"""
        return torch.stack([part.sum(0) for part in values.split(self.block_sizes_)])

    def _learn_from_first(self, accelerator) -> None:
        """The first process solves; the others receive its solution as a sum to which they add zeros."""

        def from_first(tensor: Tensor) -> Tensor:
            return accelerator.reduce(tensor.to(accelerator.device), reduction="sum").cpu()

        is_mine, error = accelerator.is_main_process, None
        if is_mine:
            try:
                self._learn()
            except ValueError as problem:
                error = problem
        found = self.n_components_ if is_mine and error is None else 0
        self.n_components_ = int(from_first(torch.tensor(found)))
        if self.n_components_ == 0:
            raise error or ValueError("The first process could not solve; its error says why.")
        self.block_sizes_, self.n_rows_ = self.moments.block_sizes, self.moments.n_rows
        n_x, n_y, n_blocks, k = self.moments.x_size, self.moments.y_size, len(self.block_sizes_), self.n_components_
        sizes = {"x": (n_x,), "y": (n_y,), "xk": (n_x, k), "yk": (n_y, k), "bk": (n_blocks, k), "k": (k,)}
        for name, kind in LEARNED.items():
            values = getattr(self, name) if is_mine else torch.zeros(sizes[kind], dtype=torch.float64)
            setattr(self, name, from_first(values))

    def transform(self, blocks) -> Tensor:
        """(n, K) super scores of blocks (n, p_1) ... (n, p_B)."""
        parts = zip(self._scaled_blocks(blocks), self.rotations_.split(self.block_sizes_), strict=True)
        return sum(block @ rotations for block, rotations in parts)

    def block_scores(self, blocks) -> Tensor:
        """(n, B, K) scores of each block by itself, on blocks deflated by the super scores.

        Block weights are of unit length, or zero where a block has no weight.
        """
        scaled, scores = self._scaled_blocks(blocks), self.transform(blocks)
        all_weights, all_loadings = (m.split(self.block_sizes_) for m in (self.weights_, self.loadings_))
        parts = []
        for block, weights, loadings in zip(scaled, all_weights, all_loadings, strict=True):
            lengths = torch.linalg.vector_norm(weights, dim=0)
            weights = weights / torch.where(lengths > 0, lengths, 1)
            parts.append(block @ weights - scores @ (loadings.T @ weights).triu(1))
        return torch.stack(parts, dim=1)

    def predict(self, blocks) -> Tensor:
        """(n, q) predictions of y."""
        return self.transform(blocks) @ self.y_loadings_.T * self.y_scale_ + self.y_mean_

    def inverse_transform(self, scores) -> list[Tensor]:
        """Blocks (n, p_1) ... (n, p_B) as super scores (n, K) rebuild them."""
        scores = as_matrix(scores, "scores").to(self.loadings_)
        rebuilt = scores @ self.loadings_.T * self.x_scale_ + self.x_mean_
        return list(rebuilt.split(self.block_sizes_, dim=1))

    def _scaled_blocks(self, blocks) -> list[Tensor]:
        if not hasattr(self, "rotations_"):
            raise ValueError("Not solved yet: call fit, or partial_fit and solve, first.")
        blocks = as_blocks(blocks)
        sizes = tuple(block.shape[1] for block in blocks)
        if sizes != self.block_sizes_:
            raise ValueError(f"Blocks have widths {sizes}; the solution is for {self.block_sizes_}.")
        means, scales = self.x_mean_.split(sizes), self.x_scale_.split(sizes)
        return [(block.to(mean) - mean) / scale for block, mean, scale in zip(blocks, means, scales, strict=True)]


# Learned tensors and their shapes: x for P, y for q, b for blocks, k for components.
LEARNED = {
    "x_mean_": "x",
    "x_scale_": "x",
    "y_mean_": "y",
    "y_scale_": "y",
    "weights_": "xk",
    "rotations_": "xk",
    "loadings_": "xk",
    "y_loadings_": "yk",
    "super_weights_": "bk",
    "explained_variance_blocks_": "bk",
    "explained_variance_x_": "k",
    "explained_variance_y_": "k",
    "score_scales_": "k",
    "vip_": "x",
}


def _why_nothing_covaries(scaled: ScaledMoments) -> str:
    if not scaled.y_inverse.any():
        return "y is constant in all its columns: there is nothing to align to."
    if not scaled.x_inverse.any():
        return "The blocks are constant in all their columns: there is nothing to align."
    return "Nothing in the blocks covaries with y."
