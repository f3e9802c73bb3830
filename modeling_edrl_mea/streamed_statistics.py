"""Second moments of a stream of rows, kept apart by cross-validation fold and summed over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .moments import JointMoments, finite_sums

NO_FOLD = -1  # where rows go that were given no cross-validation fold


class StreamedStatistics:
    """All that was seen of blocks X_1 ... X_B and a target Y.

    Attributes:
        folds: moments by fold; rows without one are under `NO_FOLD`.
        block_sizes, y_size: (p_1, ..., p_B) and q; None before any rows.
    """

    def __init__(self, dtype: torch.dtype = torch.float64):
        self.dtype = dtype
        self.folds: dict[int, JointMoments] = {}
        self.block_sizes: tuple[int, ...] | None = None
        self.y_size: int | None = None
        self._is_reduced = False

    def update(self, blocks: Sequence[Tensor], y: Tensor, folds=None) -> None:
        """Take in blocks (m, p_b) and y (m, q), all or nothing; errors as in `MultiblockPLS.partial_fit`."""
        columns = self.checked(blocks, y)
        sizes = tuple(matrix.shape[1] for matrix in columns)
        if folds is None:
            rows_of = {NO_FOLD: None}
        else:
            rows_of = self._rows_of_folds(torch.as_tensor(folds), len(y))
            finite_sums(columns, self.dtype)  # before the first fold takes its rows in
        for fold, rows in rows_of.items():
            moments = self.folds.get(fold)
            if moments is None:
                moments = JointMoments(sum(sizes[:-1]), sizes[-1], self.dtype, y.device)
            self.folds[fold] = moments.update(columns, rows)
        self.block_sizes, self.y_size = sizes[:-1], sizes[-1]

    def checked(self, blocks: Sequence[Tensor], y: Tensor) -> list[Tensor]:
        """Blocks and y as one list, if their shapes fit one another and what was seen."""
        columns = [*blocks, y]
        sizes = tuple(matrix.shape[1] for matrix in columns)
        lengths = [len(matrix) for matrix in columns]
        if len(set(lengths)) != 1:
            raise ValueError(f"Blocks and y differ in rows: blocks {lengths[:-1]}, y {lengths[-1]}.")
        if self.block_sizes is not None and sizes != (*self.block_sizes, self.y_size):
            raise ValueError(
                f"Widths changed within the stream: blocks {sizes[:-1]} and y {sizes[-1]}, "
                f"after blocks {self.block_sizes} and y {self.y_size}."
            )
        return columns

    @staticmethod
    def _rows_of_folds(folds: Tensor, n_rows: int) -> dict[int, Tensor]:
        if folds.shape != (n_rows,) or folds.is_floating_point() or (folds < 0).any():
            raise ValueError(f"folds must be {n_rows} whole numbers >= 0, one a row.")
        return {int(fold): (folds == fold).nonzero().squeeze(1) for fold in folds.unique()}

    def add(self, other: StreamedStatistics) -> None:
        if other.block_sizes is None:
            return
        if self.block_sizes is None:
            self.block_sizes, self.y_size = other.block_sizes, other.y_size
        if (self.block_sizes, self.y_size) != (other.block_sizes, other.y_size):
            raise ValueError(
                f"Cannot merge blocks {other.block_sizes}, y {other.y_size} "
                f"into blocks {self.block_sizes}, y {self.y_size}."
            )
        for fold, moments in other.folds.items():
            self.folds[fold] = self.folds[fold].add(moments) if fold in self.folds else moments.copy()

    def reduce(self, accelerator) -> None:
        """Sum over processes; see `MultiblockPLS.reduce`."""
        if self._is_reduced:
            raise RuntimeError("These statistics are summed over processes already; reset() before new data.")
        if accelerator.num_processes > 1:
            self._agree_on_widths(accelerator)
            last = int(_gather(accelerator, [max(self.folds, default=NO_FOLD)]).max())
            for fold in range(NO_FOLD, last + 1):
                moments = self.folds.get(fold)
                if not _gather(accelerator, [moments.n_rows if moments else 0]).any():
                    continue
                if moments is None:
                    moments = JointMoments(sum(self.block_sizes), self.y_size, self.dtype)
                self.folds[fold] = moments.reduce(accelerator)
        self._is_reduced = True

    def _agree_on_widths(self, accelerator) -> None:
        """Learn widths from the other processes, for a process without rows, and check the rest."""
        mine = [] if self.block_sizes is None else [*self.block_sizes, self.y_size]
        longest = int(_gather(accelerator, [len(mine)]).max())
        if longest == 0:
            return
        everyone = _gather(accelerator, mine + [0] * (longest - len(mine))).view(-1, longest)
        seen = {tuple(int(width) for width in row if width) for row in everyone} - {()}
        if len(seen) > 1:
            raise ValueError(f"Processes saw blocks (last: y) of different widths: {sorted(seen)}.")
        *block_sizes, self.y_size = seen.pop()
        self.block_sizes = tuple(block_sizes)

    def total(self) -> JointMoments:
        """Moments of all folds together."""
        if not self.folds:
            raise ValueError("No rows seen: call partial_fit or fit first.")
        first, *others = [self.folds[fold] for fold in sorted(self.folds)]
        total = first.copy() if others else first
        for moments in others:
            total.add(moments)
        return total


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


def _gather(accelerator, numbers: Sequence[int]) -> Tensor:
    """(processes * len(numbers),) whole numbers of all processes, in the order of their ranks."""
    return accelerator.gather(torch.tensor(numbers, device=accelerator.device)).cpu()
