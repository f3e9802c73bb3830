"""The joint second moments of [X | Y]: all that partial least squares needs to know of the data.

One streaming pass, constant memory. Statistics of separate parts of the data add up exactly (other
processes, other files) and can be taken away again (a cross-validation fold).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS_AT_ONCE = 2048  # rows centred and multiplied at a time: 2048 x 2048 float64 are 32 MB


class JointMoments:
    """Row count, means and centred sums of products of X (P columns) and Y (q columns).

    Sums are kept about the mean of what was seen so far (Chan, Golub & LeVeque 1979), so that a large offset
    on the data costs no digits. Of Y'Y only the diagonal is kept: partial least squares needs no more.

    Attributes:
        n_rows: rows seen.
        mean: (P + q,) means of the columns of [X | Y].
        products: (P, P + q) centred sums of products [X'X | X'Y].
        y_squares: (q,) centred sums of squares of Y's columns.
    """

    def __init__(self, x_size: int, y_size: int, dtype=torch.float64, device="cpu"):
        self.x_size, self.y_size = x_size, y_size
        self.n_rows = 0
        self.mean = torch.zeros(x_size + y_size, dtype=dtype, device=device)
        self.products = torch.zeros(x_size, x_size + y_size, dtype=dtype, device=device)
        self.y_squares = torch.zeros(y_size, dtype=dtype, device=device)

    def update(self, columns: Sequence[Tensor], rows: Tensor | None = None) -> JointMoments:
        """Take in rows of data.

        Args:
            columns: matrices (n, p_1) ... (n, p_B), (n, q), side by side [X | Y]; q columns in the last.
            rows: (m,) indices of the rows to take; all where absent.

        Raises:
            ValueError: a value is NaN or infinite; the statistics are then left as they were.
        """
        if rows is not None:
            columns = [matrix[rows.to(matrix.device)] for matrix in columns]
        n_new = len(columns[0])
        if n_new == 0:
            return self
        like = {"dtype": self.mean.dtype, "device": self.mean.device}
        mean = finite_sums(columns, like["dtype"]).to(**like) / n_new
        centred = torch.empty(min(n_new, ROWS_AT_ONCE), len(mean), **like)
        for start in range(0, n_new, ROWS_AT_ONCE):
            part = centred[: min(ROWS_AT_ONCE, n_new - start)]
            offset = 0
            for matrix in columns:
                stop = offset + matrix.shape[1]
                part[:, offset:stop] = matrix[start : start + len(part)]
                offset = stop
            self._add_products(part.sub_(mean))
        self._join(n_new, mean)
        return self

    def _add_products(self, centred: Tensor) -> None:
        x, y = centred.tensor_split([self.x_size], dim=1)
        self.x_products().add_(_gram(x))
        self.xy_products().addmm_(x.T, y)
        self.y_squares += column_sums(y.square())

    def _join(self, n_other: int, other_mean: Tensor) -> None:
        """Account for the distance between the mean so far and that of `n_other` rows whose products were
        added (or, where `n_other` is negative, taken away)."""
        n_total = self.n_rows + n_other
        distance = other_mean - self.mean
        weight = self.n_rows * n_other / n_total
        self.products.addr_(distance[: self.x_size], distance, alpha=weight)
        self.y_squares += weight * distance[self.x_size :].square()
        self.mean += distance * (n_other / n_total)
        self.n_rows = n_total

    def add(self, other: JointMoments) -> JointMoments:
        """Take in what `other` has seen, in place; the order of additions does not matter."""
        if other.n_rows:
            self.products += other.products.to(self.products.device)
            self.y_squares += other.y_squares.to(self.y_squares.device)
            self._join(other.n_rows, other.mean.to(self.mean.device))
        return self

    def without(self, part: JointMoments) -> JointMoments:
        """A copy that has not seen `part`, which must be part of what this one has seen."""
        rest = self.copy()
        if part.n_rows:
            rest.products -= part.products
            rest.y_squares -= part.y_squares
            rest._join(-part.n_rows, part.mean)
        return rest

    def copy(self) -> JointMoments:
        twin = JointMoments(0, 0)
        twin.x_size, twin.y_size, twin.n_rows = self.x_size, self.y_size, self.n_rows
        twin.mean, twin.products = self.mean.clone(), self.products.clone()
        twin.y_squares = self.y_squares.clone()
        return twin

    def reduce(self, accelerator) -> JointMoments:
        """Sum over all processes, in place. Each moves its sums to the common mean first, so that they just
        add up and memory does not grow with the number of processes.

        Args:
            accelerator: an `accelerate.Accelerator`, or anything with its `reduce(tensor, reduction="sum")`.
        """

        def total(tensor: Tensor) -> Tensor:
            return accelerator.reduce(tensor.to(accelerator.device), reduction="sum").to(tensor.device)

        n_total = int(total(torch.tensor(self.n_rows, device=self.mean.device)))
        # About some process's mean, not about zero: an offset on the data would cost digits here.
        anchor = total(self.mean * (self.n_rows / n_total))
        common_mean = anchor + total((self.mean - anchor) * (self.n_rows / n_total))
        distance = self.mean - common_mean
        self.products.addr_(distance[: self.x_size], distance, alpha=self.n_rows)
        self.y_squares += self.n_rows * distance[self.x_size :].square()
        self.products, self.y_squares = total(self.products), total(self.y_squares)
        self.mean, self.n_rows = common_mean, n_total
        return self

    @property
    def x_squares(self) -> Tensor:
        """(P,) centred sums of squares of X's columns."""
        return self.products[:, : self.x_size].diagonal()

    def x_products(self) -> Tensor:
        """(P, P) centred sums of products of X; a view."""
        return self.products[:, : self.x_size]

    def xy_products(self) -> Tensor:
        """(P, q) centred sums of products of X with Y; a view."""
        return self.products[:, self.x_size :]


def _gram(matrix: Tensor) -> Tensor:
    """(p, p) products of the columns of (n, p)."""
    if matrix.device.type == "cpu":
        # numpy calls BLAS's symmetric update here, half the work of a product; torch has no name for it.
        array = matrix.numpy()
        return torch.from_numpy(array.T @ array)
    return matrix.T @ matrix


def column_sums(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(p,) sums of the columns of (n, p): a product with ones, several times as fast as `sum(0)` on a CPU."""
    sums = torch.zeros(matrix.shape[1], dtype=dtype or matrix.dtype, device=matrix.device)
    for part in matrix.split(ROWS_AT_ONCE):
        part = part.to(sums.dtype)
        sums.addmv_(part.T, part.new_ones(len(part)))
    return sums


def finite_sums(columns: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """(P + q,) sums of the columns of [X | Y], the last matrix being Y.

    Raises:
        ValueError: a value is NaN or infinite, naming its block and row.
    """
    # A column with a NaN or an infinity in it has no finite sum: one pass both checks and adds.
    device = columns[-1].device
    sums = torch.cat([column_sums(matrix, dtype).to(device) for matrix in columns])
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
