"""Moments of [X | Y] read off rows that are in memory, where a few products with X'X cost less than X'X."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .moments import finite_sums

ROWS_IN_CACHE = 256  # rows at a time: 256 x 1280 float64 are 2.6 MB, read again from cache
LARGEST_MEAN = 100  # in standard deviations; centring after the products costs the square of this, four digits


class HeldRows:
    """Rows in memory, with what `JointMoments` offers to the solver. They are never copied as a whole.

    Rows of the dtype wanted are multiplied where they lie, and the products centred; others, and those far from
    zero, are centred a few at a time.

    Args:
        columns: matrices (n, p_1) ... (n, p_B), (n, q), side by side [X | Y].

    Attributes:
        n_rows; mean (P + q,); x_squares (P,), y_squares (q,) centred sums of squares.

    Raises:
        ValueError: a value is NaN or infinite.
    """

    def __init__(self, columns: Sequence[Tensor], dtype: torch.dtype):
        self.columns, self.n_rows = columns, len(columns[0])
        self.mean = finite_sums(columns, dtype) / max(self.n_rows, 1)
        self.x_size = len(self.mean) - columns[-1].shape[1]
        self._in_place = None
        if all(matrix.dtype == dtype and matrix.device.type == "cpu" for matrix in columns):
            self._in_place = _joined([matrix.numpy() for matrix in columns[:-1]])
            self._read_in_place()
        if self._in_place is None:
            self._read_copies()

    def _read_in_place(self) -> None:
        """Cross-products and squares; drops `_in_place` where columns are too far from zero."""
        x_mean, y_mean = self.mean.tensor_split([self.x_size])
        squares, y_squares = np.zeros(self.x_size), torch.zeros_like(y_mean)
        products = self.mean.new_zeros(len(y_mean), self.x_size)
        for start in range(0, self.n_rows, 2 * ROWS_IN_CACHE):
            rows = slice(start, start + 2 * ROWS_IN_CACHE)
            y, offset = self.columns[-1][rows] - y_mean, 0
            y_squares += y.square().sum(0)
            for block in self._in_place:
                here = slice(offset, offset + block.shape[1])
                squares[here] += np.einsum("ij,ij->j", block[rows], block[rows])
                # Not x'y, which takes several times as long where y has few columns. y sums to zero: X need not.
                products[:, here].addmm_(y.T, torch.from_numpy(block[rows]))
                offset = here.stop
        of_mean = self.n_rows * x_mean.square()
        self.x_squares, self.y_squares = torch.from_numpy(squares).to(x_mean) - of_mean, y_squares
        self._xy_products = products.T.contiguous()
        if (of_mean > LARGEST_MEAN**2 * self.x_squares).any():
            self._in_place = None

    def _read_copies(self) -> None:
        squares = torch.zeros_like(self.mean)
        products = self.mean.new_zeros(len(self.mean) - self.x_size, self.x_size)
        for part in _centred(self.columns, self.mean, 2 * ROWS_IN_CACHE):
            x, y = part.tensor_split([self.x_size], dim=1)
            products.addmm_(y.T, x)
            squares += part.square().sum(0)
        self._xy_products = products.T.contiguous()
        self.x_squares, self.y_squares = squares.tensor_split([self.x_size])

    def xy_products(self) -> Tensor:
        """(P, q) centred sums of products of X with Y."""
        return self._xy_products

    def x_times(self, vector: Tensor) -> Tensor:
        """(P,) centred X'X times a vector (P,), in one pass over the rows."""
        vector, x_mean = vector.to(self.mean), self.mean[: self.x_size]
        if self._in_place is not None:
            return self._product_in_place(vector, x_mean)
        product = torch.zeros_like(vector)
        for part in _centred(self.columns[:-1], x_mean, ROWS_IN_CACHE):
            product.addmv_(part.T, part @ vector)
        return product.cpu()

    def _product_in_place(self, vector: Tensor, x_mean: Tensor) -> Tensor:
        # numpy: its products of a matrix and a vector take two thirds of the time of torch's on a CPU.
        sizes = [block.shape[1] for block in self._in_place]
        weights = [part.numpy() for part in vector.split(sizes)]
        product = torch.zeros_like(vector)
        parts_of_product = [part.numpy() for part in product.split(sizes)]
        offset = float(x_mean @ vector)
        for start in range(0, self.n_rows, ROWS_IN_CACHE):
            parts = [block[start : start + ROWS_IN_CACHE] for block in self._in_place]
            scores = sum(part @ weight for part, weight in zip(parts, weights, strict=True)) - offset
            for part, part_of_product in zip(parts, parts_of_product, strict=True):
                part_of_product += scores @ part
        return product  # centred scores sum to zero, so that X need not be centred here


def _joined(blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same columns in fewer matrices: neighbours in one matrix, as `numpy.split` makes them, are united."""
    joined = [blocks[0]]
    for block in blocks[1:]:
        last = joined[-1]
        width, (row_bytes, column_bytes) = last.shape[1], last.strides
        is_next = block.ctypes.data == last.ctypes.data + width * block.itemsize
        if not is_next or block.strides != last.strides or column_bytes != block.itemsize:
            joined.append(block)
        elif (width + block.shape[1]) * block.itemsize <= row_bytes:  # all of it lies in one of the two
            size = (len(block), width + block.shape[1])
            joined[-1] = np.lib.stride_tricks.as_strided(last, size, last.strides)
        else:
            joined.append(block)
    return joined


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
