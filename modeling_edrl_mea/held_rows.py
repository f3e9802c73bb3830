"""Moments of [X | Y] read off rows that are in memory, where a few products with X'X cost less than X'X."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .moments import column_sums, finite_sums

ROWS_IN_CACHE = 512  # rows copied at a time: 512 x 1280 float64 are 5 MB, read twice from cache


class HeldRows:
    """Rows in memory, with what `JointMoments` offers to the solver. The rows are never copied as a whole.

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
        product = torch.zeros_like(vector)
        for part in self._centred(self.columns[:-1], self.mean[: self.x_size], ROWS_IN_CACHE):
            product.addmv_(part.T, part @ vector)
        return product.cpu()
