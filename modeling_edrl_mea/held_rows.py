"""Moments of [X | Y] read off rows that are in memory, where a few products with X'X cost less than X'X."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .moments import finite_sums

ROWS_IN_CACHE = 128  # rows copied at a time: 128 x 1280 float64 are 1.3 MB, read again from cache
SMALL = 64 * 2**20  # bytes of X that are copied as a whole, centred, for every product to be faster


class HeldRows:
    """Rows in memory, with what `JointMoments` offers to the solver. Many rows are never copied as a whole.

    Args:
        columns: matrices (n, p_1) ... (n, p_B), (n, q), side by side [X | Y].

    Attributes:
        n_rows; mean (P + q,); x_squares (P,), y_squares (q,) centred sums of squares.

    Raises:
        ValueError: a value is NaN or infinite.
    """

    def __init__(self, columns: Sequence[Tensor], dtype: torch.dtype):
        self.n_rows, self.x_size = len(columns[0]), sum(matrix.shape[1] for matrix in columns[:-1])
        self.mean = finite_sums(columns, dtype) / max(self.n_rows, 1)
        self._blocks, self._x_mean = columns[:-1], self.mean[: self.x_size]
        parts = _centred(columns, self.mean, 4 * ROWS_IN_CACHE)
        if 0 < self.n_rows * self.x_size * dtype.itemsize <= SMALL:
            whole = next(_centred(columns, self.mean, self.n_rows))
            self._blocks, self._x_mean = [whole[:, : self.x_size]], torch.zeros_like(self._x_mean)
            parts = whole.split(4 * ROWS_IN_CACHE)
        squares, products = torch.zeros_like(self.mean), self.mean.new_zeros(len(self.mean) - self.x_size, self.x_size)
        for part in parts:
            x, y = part.tensor_split([self.x_size], dim=1)
            products.addmm_(y.T, x)  # not x' y, which takes several times as long where y has few columns
            squares += part.square().sum(0)
        self._xy_products = products.T.contiguous()
        self.x_squares, self.y_squares = squares.tensor_split([self.x_size])
        self._can_multiply_in_place = self._loses_few_digits_in_place()

    def xy_products(self) -> Tensor:
        """(P, q) centred sums of products of X with Y."""
        return self._xy_products

    def x_times(self, vector: Tensor) -> Tensor:
        """(P,) centred X'X times a vector (P,), in one pass over the rows."""
        vector = vector.to(self.mean)
        if self._can_multiply_in_place:
            return self._product_in_place(vector)
        product = torch.zeros_like(vector)
        for part in _centred(self._blocks, self._x_mean, ROWS_IN_CACHE):
            product.addmv_(part.T, part @ vector)
        return product.cpu()

    def _loses_few_digits_in_place(self) -> bool:
        """Whether rows can be multiplied as they are, without a copy, at the cost of three digits at most."""
        if any(block.dtype != self.mean.dtype or block.device.type != "cpu" for block in self._blocks):
            return False
        deviation = (self.x_squares / max(self.n_rows, 1)).sqrt()
        return bool((self._x_mean.abs() <= 1e3 * deviation).all())

    def _product_in_place(self, vector: Tensor) -> Tensor:
        # numpy: its products of a matrix and a vector take two thirds of the time of torch's on a CPU.
        sizes = [block.shape[1] for block in self._blocks]
        blocks, parts_of_vector = (
            [tensor.numpy() for tensor in tensors] for tensors in (self._blocks, vector.split(sizes))
        )
        product, score_sum = torch.zeros_like(vector), 0.0
        parts_of_product = [part.numpy() for part in product.split(sizes)]
        offset = float(self._x_mean @ vector)
        for start in range(0, self.n_rows, 4 * ROWS_IN_CACHE):
            parts = [block[start : start + 4 * ROWS_IN_CACHE] for block in blocks]
            scores = sum(part @ weights for part, weights in zip(parts, parts_of_vector, strict=True)) - offset
            for part, part_of_product in zip(parts, parts_of_product, strict=True):
                part_of_product += scores @ part
            score_sum += scores.sum()
        return product - self._x_mean * score_sum


def _centred(columns: Sequence[Tensor], mean: Tensor, n_rows: int) -> Iterator[Tensor]:
    """Chunks (m, columns) of centred rows, in a buffer that the next chunk overwrites."""
    total = len(columns[0])
    buffer = mean.new_empty(min(n_rows, total), len(mean))
    for start in range(0, total, n_rows):
        part = buffer[: min(n_rows, total - start)]
        offset = 0
        for matrix in columns:
            stop = offset + matrix.shape[1]
            part[:, offset:stop] = matrix[start : start + len(part)]  # to convert first is faster
            offset = stop
        yield part.sub_(mean)
