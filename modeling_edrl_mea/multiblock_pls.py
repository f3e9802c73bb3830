"""Multiblock partial least squares (MBPLS) that streams any amount of data over any number of processes.

MBPLS with super-score deflation (Westerhuis, Kourti & MacGregor 1998, J. Chemom. 12:301) on blocks scaled by
1/sqrt(p_b) equals PLS2 on the concatenated blocks. It is therefore solved from the joint second moments
alone, at a cost that does not depend on the number of rows.

Notation: n rows, B blocks of p_b columns, P = p_1 + ... + p_B, q target columns, k components.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .component_choice import assign_folds, one_standard_error_choice
from .held_rows import HeldRows
from .kernel_pls import kernel_pls
from .moments import JointMoments
from .streamed_statistics import NO_FOLD, StreamedStatistics, as_blocks, as_matrix

logger = logging.getLogger(__name__)

# Wide enough data has this many columns a component for one pass over the rows per component to cost less
# than X'X; measured with 1280 columns.
COLUMNS_PER_COMPONENT = 32


class MultiblockPLS:
    """Multiblock partial least squares from streamed second moments.

    Args:
        n_components: components k to look for; fewer are found where the cross-covariance is used up.
        scale_blocks: divide block b by sqrt(p_b), so that a wide block does not win by its width.
        standardize: divide every column by its standard deviation (n - 1 degrees of freedom); constant
            columns are left out.
        center: subtract the mean of every column.
        ridge: shrinkage, as a fraction of the mean variance of a (scaled) column of X: solves as if P further
            rows sqrt(ridge * variance * (n - 1)) * I with zero targets had been seen. 0: none.
        dtype: of statistics and solution; float32 is smaller, and exact to about 1e-4 only.

    Blocks are a list of matrices (n, p_b), torch or numpy, or one matrix; y is (n, q) or (n,). Results are
    tensors of `dtype` on the CPU.

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
        cv_errors_: (folds, k + 1), after `select_n_components`.
    """

    def __init__(
        self,
        n_components: int,
        scale_blocks: bool = True,
        standardize: bool = True,
        center: bool = True,
        ridge: float = 0.0,
        dtype: torch.dtype = torch.float64,
    ):
        if int(n_components) < 1:
            raise ValueError(f"n_components must be at least 1, not {n_components}.")
        if ridge < 0:
            raise ValueError(f"ridge must not be negative, but is {ridge}.")
        self.n_components = int(n_components)
        self.scale_blocks, self.standardize, self.center = scale_blocks, standardize, center
        self.ridge = ridge
        self.dtype = dtype
        self.reset()

    def reset(self) -> MultiblockPLS:
        """Forget all rows seen; a solution stays until the next `solve`."""
        self.statistics = StreamedStatistics(self.dtype)
        return self

    def partial_fit(self, blocks, y, folds=None) -> MultiblockPLS:
        """Take in a chunk of rows; the order and size of chunks do not matter.

        Args:
            blocks: matrices (m, p_1) ... (m, p_B).
            y: (m, q) or (m,).
            folds: (m,) whole numbers >= 0, the cross-validation fold of each row. Rows of one group (a
                speaker) belong in one fold: see `assign_folds`.

        Raises:
            ValueError: shapes do not agree with one another or with earlier chunks, or a value is NaN or
                infinite. The statistics are then left as they were.
        """
        self.statistics.update(as_blocks(blocks), as_matrix(y, "y"), folds)
        return self

    def merge(self, other: MultiblockPLS) -> MultiblockPLS:
        """Take in, in place, what `other` has seen (other rows of the same blocks and target)."""
        self.statistics.add(other.statistics)
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
        self.statistics.reduce(accelerator)
        return self

    def fit(self, blocks, y, groups: Sequence[Hashable] | None = None, n_folds: int = 5) -> MultiblockPLS:
        """Solve for these rows alone, and forget them: to go on adding rows, use `partial_fit` and `solve`.

        Reads X'X off the rows where few components are wanted, which is faster; the result is the same.

        Args:
            groups: (n,) group of each row (a speaker), of any hashable type. Where given, the number of
                components is chosen by cross-validation over groups, up to `n_components`.
            n_folds: folds of that cross-validation.
        """
        self.reset()
        columns = self.statistics.checked(as_blocks(blocks), as_matrix(y, "y"))
        widths = tuple(matrix.shape[1] for matrix in columns[:-1])
        if groups is None and self.n_components * COLUMNS_PER_COMPONENT <= sum(widths):
            self.statistics.block_sizes = widths
            self._learn(HeldRows(columns, self.dtype), self.n_components)
            self._say_if_fewer(self.n_components)
        elif groups is None:
            self.partial_fit(blocks, y).solve()
        else:
            self.partial_fit(blocks, y, assign_folds(groups, n_folds)).solve(self.select_n_components())
        return self.reset()

    def solve(self, n_components: int | None = None, accelerator=None) -> MultiblockPLS:
        """Compute the learned attributes from the rows seen, at a cost that does not depend on their number.

        Args:
            n_components: components to look for where not the constructor's.
            accelerator: where given, its first process solves, and all receive the same solution; call
                `reduce` before.

        Raises:
            ValueError: fewer than two rows, nothing in X covaries with Y (all-constant Y, say), or squares of the
                values overflow.
        """
        asked = n_components or self.n_components
        if accelerator is None or accelerator.num_processes == 1:
            self._learn(self.statistics.total(), asked)
        else:
            self._learn_from_first(asked, accelerator)
        self._say_if_fewer(asked)
        return self

    def _say_if_fewer(self, asked: int) -> None:
        """No warning: little data has few directions, and all of them are used."""
        if self.n_components_ < asked:
            logger.info(
                "The cross-covariance of blocks and target was used up after %d components; %d were asked for.",
                self.n_components_,
                asked,
            )

    def _learn(self, moments: JointMoments | HeldRows, n_components: int) -> None:
        scaled = self._scale(moments)
        components = self._components(scaled, n_components)
        if components[0].shape[1] == 0:
            raise ValueError(_why_nothing_covaries(scaled))
        self.weights_, self.rotations_, self.loadings_, self.y_loadings_, score_squares = components
        self.n_components_ = self.weights_.shape[1]
        self.block_sizes_, self.n_rows_ = self.statistics.block_sizes, scaled.n_rows
        self.x_mean_, self.y_mean_ = scaled.x_mean, scaled.y_mean
        self.x_scale_, self.y_scale_ = (
            torch.where(inverse > 0, 1 / inverse, 1) for inverse in (scaled.x_inverse, scaled.y_inverse)
        )
        # X'X times the rotations, less what ridge added.
        score_products = self.loadings_ * score_squares - self._shrinkage(scaled) * self.rotations_
        self._explain(scaled, score_products)

    def _scale(self, moments: JointMoments | HeldRows) -> _ScaledMoments:
        """Centre and scale the moments as the constructor asks; constant columns become zero."""
        n, n_x = moments.n_rows, moments.x_size
        if n < 2:
            raise ValueError(f"Partial least squares needs at least 2 rows, not {n}.")
        mean, squares = (
            moments.mean.cpu(),
            torch.cat([moments.x_squares, moments.y_squares]).cpu().clamp(min=0),
        )
        if not squares.isfinite().all():
            raise ValueError("Values are too large: their squares overflow. Rescale the blocks or y.")
        deviation = squares.div(n - 1).sqrt()
        inverse = 1 / deviation if self.standardize else torch.ones_like(deviation)
        if self.standardize or self.center:
            # A constant column deviates from its mean by the rounding of that mean.
            inverse[deviation <= 1e3 * torch.finfo(self.dtype).eps * mean.abs()] = 0
        if self.scale_blocks:
            widths = torch.tensor(self.statistics.block_sizes)
            inverse[:n_x] /= widths.repeat_interleave(widths).to(inverse).sqrt()
        x_inverse, y_inverse = inverse[:n_x], inverse[n_x:]
        xy_products = x_inverse[:, None] * moments.xy_products().cpu() * y_inverse
        x_times = _scaled_product(moments, x_inverse)
        squares = squares * inverse.square()
        if not self.center:
            x_shift, y_shift = (mean * inverse).split([n_x, len(y_inverse)])
            xy_products += n * torch.outer(x_shift, y_shift)
            squares += n * (mean * inverse).square()
            x_times = _uncentred_product(x_times, x_shift, n)
            mean = torch.zeros_like(mean)
        return _ScaledMoments(
            n_rows=n,
            x_mean=mean[:n_x],
            y_mean=mean[n_x:],
            x_inverse=x_inverse,
            y_inverse=y_inverse,
            x_times=x_times,
            x_squares=squares[:n_x],
            xy_products=xy_products,
            y_square=float(squares[n_x:].sum()),
        )

    def _components(self, scaled: _ScaledMoments, n_components: int) -> tuple[Tensor, ...]:
        shrinkage = self._shrinkage(scaled)

        def x_times(vector: Tensor) -> Tensor:
            return scaled.x_times(vector) + shrinkage * vector

        return kernel_pls(x_times, scaled.x_squares, scaled.xy_products, n_components)

    def _shrinkage(self, scaled: _ScaledMoments) -> float:
        """What ridge adds to the diagonal of X'X."""
        return self.ridge * float(scaled.x_squares.mean())

    def _explain(self, scaled: _ScaledMoments, score_products: Tensor) -> None:
        """What each component adds, measured on the rows seen; scores may be correlated (ridge)."""
        scores_square = self.rotations_.T @ score_products
        self.score_scales_ = (scores_square.diagonal() / (scaled.n_rows - 1)).sqrt()
        y_explained = ((scaled.xy_products.T @ self.rotations_) * self.y_loadings_).sum(0)
        y_square = scores_square * (self.y_loadings_.T @ self.y_loadings_)
        self.explained_variance_y_ = _added(y_explained, y_square) / scaled.y_square
        variances = scaled.x_squares.split(self.block_sizes_)
        parts = zip(score_products.split(self.block_sizes_), self.loadings_.split(self.block_sizes_), strict=True)
        explained = torch.stack(
            [_added((product * loading).sum(0), scores_square * (loading.T @ loading)) for product, loading in parts]
        )
        block_variances = torch.stack([variance.sum() for variance in variances])
        self.explained_variance_x_ = explained.sum(0) / block_variances.sum()
        # A constant block has no variance to explain.
        safe_variances = torch.where(block_variances > 0, block_variances, 1)
        self.explained_variance_blocks_ = explained / safe_variances[:, None]
        shares = self.weights_.square()
        self.super_weights_ = torch.stack([part.sum(0) for part in shares.split(self.block_sizes_)])
        gains = self.explained_variance_y_.clamp(min=0)
        n_varying = int((scaled.x_inverse > 0).sum())
        self.vip_ = (n_varying * (shares @ gains) / gains.sum()).sqrt()

    def _learn_from_first(self, n_components: int, accelerator) -> None:
        """The first process solves; the others receive its solution as a sum to which they add zeros."""

        def from_first(tensor: Tensor) -> Tensor:
            return accelerator.reduce(tensor.to(accelerator.device), reduction="sum").cpu()

        total = self.statistics.total()
        error = None
        if accelerator.is_main_process:
            try:
                self._learn(total, n_components)
            except ValueError as problem:
                error = problem
        found = 0 if error or not accelerator.is_main_process else self.n_components_
        self.n_components_ = int(from_first(torch.tensor(found)))
        if self.n_components_ == 0:
            raise error or ValueError("The first process could not solve; its error says why.")
        self.block_sizes_, self.n_rows_ = self.statistics.block_sizes, total.n_rows
        n_x, n_y, n_blocks, k = total.x_size, total.y_size, len(self.block_sizes_), self.n_components_
        sizes = {"x": (n_x,), "y": (n_y,), "xk": (n_x, k), "yk": (n_y, k), "bk": (n_blocks, k), "k": (k,)}
        for name, kind in LEARNED.items():
            is_mine = accelerator.is_main_process
            mine = getattr(self, name) if is_mine else torch.zeros(sizes[kind], dtype=self.dtype)
            setattr(self, name, from_first(mine))

    def select_n_components(self, n_components: int | None = None) -> int:
        """Choose the number of components by cross-validation over the folds given to `partial_fit`.

        Each fold's moments are taken away from the total to train, and give the squared error of the scaled
        target on that fold: no second pass over the data. The choice is the fewest components whose mean
        error is within one standard error of the best (Breiman et al. 1984, section 3.4.3).

        Args:
            n_components: most components to consider where not the constructor's.

        Returns:
            the choice, at least 1; pass it to `solve`. `cv_errors_` then holds (folds, k + 1) mean squared
            errors with 0, 1, ... k components.

        Raises:
            ValueError: rows of fewer than two folds were seen, or some rows had no fold.
        """
        most = n_components or self.n_components
        total = self.statistics.total()
        folds = self.statistics.folds
        if NO_FOLD in folds or len(folds) < 2:
            raise ValueError("Cross-validation needs rows of at least two folds: give `folds` or `groups`.")
        self.cv_errors_ = torch.stack(
            [self._errors_on(folds[fold], total.without(folds[fold]), most) for fold in sorted(folds)]
        )
        return one_standard_error_choice(self.cv_errors_)

    def _errors_on(self, held_out: JointMoments, training: JointMoments, n_components: int) -> Tensor:
        """(k + 1,) mean squared errors on held-out rows with 0 ... k components from the training rows."""
        scaled = self._scale(training)
        _, rotations, _, y_loadings, _ = self._components(scaled, n_components)
        rotations = scaled.x_inverse[:, None] * rotations
        x_distance, y_distance = (held_out.mean.cpu() - torch.cat([scaled.x_mean, scaled.y_mean])).split(
            [held_out.x_size, held_out.y_size]
        )
        n, score_distance = held_out.n_rows, x_distance @ rotations
        scores_square = rotations.T @ held_out.x_products().cpu() @ rotations
        scores_square += n * torch.outer(score_distance, score_distance)
        scores_by_y = rotations.T @ held_out.xy_products().cpu() + n * torch.outer(score_distance, y_distance)
        y_squares = held_out.y_squares.cpu() + n * y_distance.square()
        y_square = (y_squares * scaled.y_inverse.square()).sum()
        explained = (scores_by_y * scaled.y_inverse * y_loadings.T).sum(1)
        gains = _added(explained, scores_square * (y_loadings.T @ y_loadings)).cumsum(0)
        # Where components ran out, more of them change nothing.
        gains = torch.cat([gains.new_zeros(1), gains])
        gains = torch.cat([gains, gains[-1:].expand(n_components + 1 - len(gains))])
        return (y_square - gains) / (n * held_out.y_size)

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
        scores = as_matrix(scores, "scores").to(device="cpu", dtype=self.dtype)
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
        return [
            (block.to(device="cpu", dtype=self.dtype) - mean) / scale
            for block, mean, scale in zip(blocks, means, scales, strict=True)
        ]


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


class _ScaledMoments(NamedTuple):
    """Moments of centred and scaled data, on the CPU; `*_inverse` are one over the scale, 0 if constant."""

    n_rows: int
    x_mean: Tensor
    y_mean: Tensor
    x_inverse: Tensor
    y_inverse: Tensor
    x_times: Callable[[Tensor], Tensor]  # X'X times a vector
    x_squares: Tensor
    xy_products: Tensor
    y_square: float


def _scaled_product(moments: JointMoments | HeldRows, inverse: Tensor) -> Callable[[Tensor], Tensor]:
    if isinstance(moments, HeldRows):
        return lambda vector: inverse * moments.x_times(inverse * vector)
    products = moments.x_products().cpu()
    return lambda vector: inverse * products.mv(inverse * vector)


def _uncentred_product(x_times: Callable, mean: Tensor, n_rows: int) -> Callable[[Tensor], Tensor]:
    return lambda vector: x_times(vector) + n_rows * (mean @ vector) * mean


def _added(explained: Tensor, squares: Tensor) -> Tensor:
    """(K,) sum of squares that each component in turn takes off, where all up to a take off
    2 * sum(explained[:a]) - sum(squares[:a, :a])."""
    total = 2 * explained.cumsum(0) - squares.cumsum(0).cumsum(1).diagonal()
    return total.diff(prepend=total.new_zeros(1))


def _why_nothing_covaries(scaled: _ScaledMoments) -> str:
    if not scaled.y_inverse.any():
        return "y is constant in all its columns: there is nothing to align to."
    if not scaled.x_inverse.any():
        return "The blocks are constant in all their columns: there is nothing to align."
    return "Nothing in the blocks covaries with y."
