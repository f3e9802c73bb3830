"""Moments of [X | Y] read off rows that are in memory, where a few products with X'X cost less than X'X."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .moments import column_sums, finite_sums

ROWS_IN_CACHE = 128  # rows copied at a time: 128 x 1280 float64 are 1.3 MB, read again from cache


class HeldRows:
    """Rows in memory, with what `JointMoments` offers to the solver. They are never copied as a whole.

    Args:
        columns: matrices (n, p_1) ... (n, p_B), (n, q), side by side [X | Y].

    Attributes:
        n_rows; mean (P + q,); x_squares (P,), y_squares (q,) centred sums of squares.

    Raises:
        ValueError: a value is NaN or infinite.
    """

    def __init__(self, columns: Sequence[Tensor], dtype: torch.dtype):
        self.columns, self.dtype = columns, dtype
        self.n_rows = len(columns[0])
        self.mean = finite_sums(columns, dtype) / max(self.n_rows, 1)
        self.x_size = len(self.mean) - columns[-1].shape[1]
        squares, products = torch.zeros_like(self.mean), None
        for part in self._centred(columns, self.mean, 4 * ROWS_IN_CACHE):
            x, y = part[:, : self.x_size], part[:, self.x_size :]
            products = x.T @ y if products is None else products.addmm_(x.T, y)
            squares += column_sums(part.square_())
        self._xy_products = products
        self.x_squares, self.y_squares = squares.split([self.x_size, len(squares) - self.x_size])

    def _centred(self, columns: Sequence[Tensor], mean: Tensor, n_rows: int) -> Iterator[Tensor]:
        """Chunks (m, columns) of centred rows, in a buffer that the next chunk overwrites."""
        buffer = mean.new_empty(min(n_rows, self.n_rows), len(mean))
        for start in range(0, self.n_rows, n_rows):
            part = buffer[: min(n_rows, self.n_rows - start)]
            offset = 0
            for matrix in columns:
                chunk = matrix[start : start + len(part)].to(self.dtype)
                stop = offset + matrix.shape[1]
                torch.sub(chunk, mean[offset:stop], out=part[:, offset:stop])
                offset = stop
            yield part

    def xy_products(self) -> Tensor:
        """(P, q) centred sums of products of X with Y."""
        return self._xy_products

    def x_times(self, vector: Tensor) -> Tensor:
        """(P,) centred X'X times a vector (P,), in one pass over the rows."""
        vector = vector.to(self.mean)
        if self._can_center_products:
            return self._centre_product(vector).cpu()
        product = torch.zeros_like(vector)
        for part in self._centred(self.columns[:-1], self.mean[: self.x_size], ROWS_IN_CACHE):
            product.addmv_(part.T, part @ vector)
        return product.cpu()

    @property
    def _can_center_products(self) -> bool:
        """Whether rows can be multiplied as they are, without a copy, at the cost of three digits at most."""
        blocks, mean = self.columns[:-1], self.mean[: self.x_size]
        deviation = (self.x_squares / self.n_rows).sqrt()
        return all(block.dtype == self.dtype for block in blocks) and bool((mean.abs() <= 1e3 * deviation).all())

    def _centre_product(self, vector: Tensor) -> Tensor:
        sizes = [block.shape[1] for block in self.columns[:-1]]
        mean, parts_of_vector = self.mean[: self.x_size], vector.split(sizes)
        product, score_sum = torch.zeros_like(vector), 0
        for start in range(0, self.n_rows, 4 * ROWS_IN_CACHE):
            parts = [block[start : start + 4 * ROWS_IN_CACHE] for block in self.columns[:-1]]
            scores = -(mean @ vector).expand(len(parts[0]))
            for part, part_of_vector in zip(parts, parts_of_vector, strict=True):
                scores = scores + part @ part_of_vector
            for part, part_of_product in zip(parts, product.split(sizes), strict=True):
                part_of_product.addmv_(part.T, scores)
            score_sum = score_sum + scores.sum()
        return product - mean * score_sum
