"""The joint second moments of [X | Y], X being blocks side by side: all that partial least squares needs of the data.

They are gathered in one streaming pass, in constant memory and float64, and those of separate parts of the data
(other processes, other files) add up exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ROWS_AT_ONCE = 2048  # rows centered and multiplied at a time: 2048 x 2048 float64 are 32 MB
CONSTANT = 1e3 * torch.finfo(torch.float64).eps  # deviation relative to its mean that rounding gives a constant column


class JointMoments:
    """Row count, means and centered sums of products of X (P columns in B blocks) and Y (q columns).

    Sums are kept about the mean of what was seen so far (Chan, Golub & LeVeque 1979), so that a large offset
    on the data costs no digits. Of Y'Y only the diagonal is kept: partial least squares needs no more.

    Attributes:
        n_rows: rows seen.
        block_sizes, y_size: (p_1, ..., p_B) and q; () and 0 before any rows, when the tensors below do not exist.
        mean: (P + q,) means of the columns of [X | Y].
        products: (P, P + q) centered sums of products [X'X | X'Y].
        y_squares: (q,) centered sums of squares of Y's columns.
    """

    def __init__(self):
        self.n_rows, self.block_sizes, self.y_size = 0, (), 0
        self._is_reduced = False

    def update(self, blocks: Sequence[Tensor], y: Tensor) -> None:
        """Take in blocks (m, p_b) and y (m, q), all or nothing; errors as in `MultiblockPLS.partial_fit`."""
        columns, n_new = [*blocks, y], len(y)
        self._check_shapes(columns)
        sums = _finite_sums(columns)
        if not self.block_sizes:
            self._allocate([block.shape[1] for block in blocks], y.shape[1], y.device)
        if n_new == 0:
            return
        mean = sums.to(self.mean.device) / n_new
        for start in range(0, n_new, ROWS_AT_ONCE):
            parts = [matrix[start : start + ROWS_AT_ONCE].to(mean) for matrix in columns]
            self._add_products(torch.cat(parts, dim=1).sub_(mean))
        self._join(n_new, mean)

    def _check_shapes(self, columns: Sequence[Tensor]) -> None:
        lengths = [len(matrix) for matrix in columns]
        if len(set(lengths)) != 1:
            raise ValueError(f"Blocks and y differ in rows: blocks {lengths[:-1]}, y {lengths[-1]}.")
        *block_sizes, y_size = (matrix.shape[1] for matrix in columns)
        if self.block_sizes and (tuple(block_sizes), y_size) != (self.block_sizes, self.y_size):
            raise ValueError(
                f"Widths changed within the stream: blocks {tuple(block_sizes)} and y {y_size}, "
                f"after blocks {self.block_sizes} and y {self.y_size}."
            )

    def _allocate(self, block_sizes: Sequence[int], y_size: int, device) -> None:
        self.block_sizes, self.y_size = tuple(block_sizes), y_size
        float64 = {"dtype": torch.float64, "device": device}
        self.mean = torch.zeros(self.x_size + y_size, **float64)
        self.products = torch.zeros(self.x_size, self.x_size + y_size, **float64)
        self.y_squares = torch.zeros(y_size, **float64)

    def _add_products(self, centered: Tensor) -> None:
        x, y = centered.tensor_split([self.x_size], dim=1)
        self.x_products.add_(_gram(x))
        self.xy_products.addmm_(x.T, y)
        self.y_squares += _column_sums(y.square())

    def _join(self, n_other: int, other_mean: Tensor) -> None:
        """Account for the distance between the mean so far and that of `n_other` rows whose products were added."""
        n_total = self.n_rows + n_other
        distance = other_mean - self.mean
        self._shift(distance, self.n_rows * n_other / n_total)
        self.mean += distance * (n_other / n_total)
        self.n_rows = n_total

    def _shift(self, distance: Tensor, weight: float) -> None:
        x_distance, y_distance = distance.tensor_split([self.x_size])
        self.products.addr_(x_distance, distance, alpha=weight)
        self.y_squares += weight * y_distance.square()

    def add(self, other: JointMoments) -> None:
        """Take in what `other` has seen, in place; the order of additions does not matter."""
        if not other.block_sizes:
            return
        if not self.block_sizes:
            self._allocate(other.block_sizes, other.y_size, other.mean.device)
        if (self.block_sizes, self.y_size) != (other.block_sizes, other.y_size):
            raise ValueError(
                f"Cannot merge blocks {other.block_sizes}, y {other.y_size} "
                f"into blocks {self.block_sizes}, y {self.y_size}."
            )
        if other.n_rows:
            self.products += other.products.to(self.products.device)
            self.y_squares += other.y_squares.to(self.y_squares.device)
            self._join(other.n_rows, other.mean.to(self.mean.device))

    def reduce(self, accelerator) -> None:
        """Sum over all processes, in place; see `MultiblockPLS.reduce`. Each process moves its sums to the common
        mean first, so that they just add up and memory does not grow with the number of processes."""
        if self._is_reduced:
            raise RuntimeError("These statistics are summed over processes already; reset() before new data.")
        self._is_reduced = True
        if accelerator.num_processes == 1 or not self._agree_on_widths(accelerator):
            return

        def total(tensor: Tensor) -> Tensor:
            return accelerator.reduce(tensor.to(accelerator.device), reduction="sum").to(tensor.device)

        n_total = int(total(torch.tensor(self.n_rows, device=self.mean.device)))
        share = self.n_rows / max(n_total, 1)
        # About some process's mean, not about zero: an offset on the data would cost digits here.
        anchor = total(self.mean * share)
        common_mean = anchor + total((self.mean - anchor) * share)
        self._shift(self.mean - common_mean, self.n_rows)
        self.products, self.y_squares = total(self.products), total(self.y_squares)
        self.mean, self.n_rows = common_mean, n_total

    def _agree_on_widths(self, accelerator) -> bool:
        """Check that all processes saw the same widths, and tell them to those without rows; False if all are."""
        mine = [*self.block_sizes, self.y_size] if self.block_sizes else []
        longest = int(_gather(accelerator, [len(mine)]).max())
        if longest == 0:
            return False
        everyone = _gather(accelerator, mine + [0] * (longest - len(mine))).view(-1, longest)
        seen = {tuple(int(width) for width in row if width) for row in everyone} - {()}
        if len(seen) > 1:
            raise ValueError(f"Processes saw blocks (last: y) of different widths: {sorted(seen)}.")
        if not mine:
            *block_sizes, y_size = seen.pop()
            self._allocate(block_sizes, y_size, "cpu")
        return True

    def scaled(self, scale_blocks: bool, standardize: bool) -> ScaledMoments:
        """Scale the columns as `MultiblockPLS` says; constant ones become zero.

        Raises:
            ValueError: fewer than two rows, or squares of the values overflow.
        """
        if not self.block_sizes:
            raise ValueError("No rows seen: call partial_fit or fit first.")
        if self.n_rows < 2:
            raise ValueError(f"Partial least squares needs at least 2 rows, not {self.n_rows}.")
        mean = self.mean.cpu()
        squares = torch.cat([self.x_products.diagonal(), self.y_squares]).cpu().clamp(min=0)
        if not squares.isfinite().all():
            raise ValueError("Values are too large: their squares overflow. Rescale the blocks or y.")
        deviation = squares.div(self.n_rows - 1).sqrt()
        inverse = 1 / deviation if standardize else torch.ones_like(deviation)
        inverse[deviation <= CONSTANT * mean.abs()] = 0
        if scale_blocks:
            widths = torch.tensor(self.block_sizes)
            inverse[: self.x_size] /= widths.repeat_interleave(widths).to(inverse).sqrt()
        return self._scaled_by(inverse, mean, squares * inverse.square())

    def _scaled_by(self, inverse: Tensor, mean: Tensor, squares: Tensor) -> ScaledMoments:
        x_inverse, y_inverse = inverse.tensor_split([self.x_size])
        x_mean, y_mean = mean.tensor_split([self.x_size])
        x_squares, y_squares = squares.tensor_split([self.x_size])
        xy_products = x_inverse[:, None] * self.xy_products.cpu() * y_inverse
        unscaled = self.x_products.cpu()
        return ScaledMoments(
            x_mean, y_mean, x_inverse, y_inverse, unscaled, x_squares, xy_products, float(y_squares.sum())
        )

    @property
    def x_size(self) -> int:
        return sum(self.block_sizes)

    @property
    def x_products(self) -> Tensor:
        """(P, P) centered sums of products of X; a view."""
        return self.products[:, : self.x_size]

    @property
    def xy_products(self) -> Tensor:
        """(P, q) centered sums of products of X with Y; a view."""
        return self.products[:, self.x_size :]


class ScaledMoments(NamedTuple):
    """Moments of centered and scaled data, on the CPU; `*_inverse` are one over the scale, 0 for a constant column."""

    x_mean: Tensor
    y_mean: Tensor
    x_inverse: Tensor
    y_inverse: Tensor
    unscaled_x_products: Tensor  # (P, P), not scaled: a scaled copy would double the memory
    x_squares: Tensor
    xy_products: Tensor
    y_square: float  # sum over all columns of Y

    def x_times(self, vector: Tensor) -> Tensor:
        """(P,) X'X times a vector (P,)."""
        return self.x_inverse * self.unscaled_x_products.mv(self.x_inverse * vector)


def as_matrix(values, name: str) -> Tensor:
    """A torch or numpy array (n, p) or (n,) as a detached (n, p) tensor; ValueError for other shapes."""
    matrix = torch.as_tensor(values).detach()
    if matrix.dim() == 1:
        matrix = matrix[:, None]
    if matrix.dim() != 2 or matrix.shape[1] == 0 or matrix.is_complex():
        raise ValueError(f"{name} must be a real matrix (rows, columns), not of shape {tuple(matrix.shape)}.")
    return matrix


def as_blocks(blocks) -> list[Tensor]:
    """A list of matrices, or one matrix, as a list of (n, p_b) tensors."""
    if not isinstance(blocks, (list, tuple)):
        blocks = [blocks]
    if not blocks:
        raise ValueError("No blocks given.")
    return [as_matrix(block, f"block {index}") for index, block in enumerate(blocks)]


def _gram(matrix: Tensor) -> Tensor:
    """(p, p) products of the columns of (n, p)."""
    if matrix.device.type == "cpu":
        # numpy calls BLAS's symmetric update here, half the work of a product; torch has no name for it.
        array = matrix.numpy()
        return torch.from_numpy(array.T @ array)
    return matrix.T @ matrix


def _column_sums(matrix: Tensor) -> Tensor:
    """(p,) float64 sums of the columns of (n, p): a product with ones, several times as fast as `sum(0)` on a CPU."""
    sums = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for part in matrix.split(ROWS_AT_ONCE):
        sums.addmv_(part.to(sums).T, sums.new_ones(len(part)))
    return sums


def _finite_sums(columns: Sequence[Tensor]) -> Tensor:
    """(P + q,) sums of the columns of [X | Y], the last matrix being Y.

    Raises:
        ValueError: a value is NaN or infinite, naming its block and row.
    """
    # A column with a NaN or an infinity in it has no finite sum: one pass both checks and adds.
    device = columns[-1].device
    sums = torch.cat([_column_sums(matrix).to(device) for matrix in columns])
    if torch.isfinite(sums).all():
        return sums
    for index, matrix in enumerate(columns):
        bad = (~torch.isfinite(matrix)).any(dim=1)
        if bad.any():
            name = "y" if index == len(columns) - 1 else f"block {index}"
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"{name} has a NaN or infinite value in row {row} ({int(bad.sum())} such rows): "
                "drop or repair these rows before fitting the alignment."
            )
    raise ValueError("Values are too large: their sums overflow. Rescale the blocks or y.")


def _gather(accelerator, numbers: Sequence[int]) -> Tensor:
    """(processes * len(numbers),) whole numbers of all processes, in the order of their ranks."""
    return accelerator.gather(torch.tensor(numbers, device=accelerator.device)).cpu()
