"""Partial least squares from second moments: improved kernel PLS (Dayal & MacGregor 1997)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_DIRECT = 64  # up to this many rows or columns the Gram matrix is decomposed at once
LARGEST_KRYLOV_SPACE = 120  # Lanczos vectors before a restart
CHECK_EVERY = 5  # Lanczos steps between looks at convergence


def kernel_pls(
    x_times: Callable[[Tensor], Tensor], x_squares: Tensor, xy_products: Tensor, n_components: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Components of greatest covariance one after another, each deflated from the (P, q) cross-products.

    Args:
        x_times: maps a vector (P,) to X'X times it, (P,); called once a component.
        x_squares: (P,) diagonal of X'X.
        xy_products: (P, q) X'Y.
        n_components: components to look for.

    Returns:
        weights (P, K), rotations (P, K), loadings (P, K), y_loadings (q, K), sums of squares of the scores
        (K,), with K <= n_components: the search ends when the cross-products are zero to rounding.
    """
    cross = xy_products.clone()
    # What rounding leaves of cross-products that are used up, by numpy's convention for the rank of a matrix.
    noise = max(cross.shape) * torch.finfo(cross.dtype).eps
    floor = noise * float(torch.linalg.matrix_norm(cross))
    least_score = noise * float(x_squares.max())
    n_components = min(n_components, len(cross))
    weights, rotations, loadings = (cross.new_zeros(n_components, len(cross)).T for _ in range(3))
    y_loadings, score_squares = cross.new_zeros(cross.shape[1], n_components), cross.new_zeros(n_components)
    start = None
    found = 0
    while found < n_components:
        if float(torch.linalg.matrix_norm(cross)) <= floor:
            break
        weight, start = dominant_left_singular_vector(cross, start)
        rotation = weight.clone()
        for _ in range(2):  # the second pass restores the digits that the first one loses to cancellation
            rotation -= rotations[:, :found] @ (loadings[:, :found].T @ rotation)
        score_products = x_times(rotation)
        score_square = float(rotation @ score_products)
        if score_square <= least_score:
            break
        y_loading = cross.T @ rotation / score_square
        loading = score_products / score_square
        cross.addr_(loading, y_loading, alpha=-score_square)
        weights[:, found], rotations[:, found], loadings[:, found] = weight, rotation, loading
        y_loadings[:, found], score_squares[found] = y_loading, score_square
        found += 1
    return (*(m[:, :found].contiguous() for m in (weights, rotations, loadings, y_loadings)), score_squares[:found])


def dominant_left_singular_vector(matrix: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The left singular vector of the largest singular value, its largest entry positive.

    Args:
        matrix: (m, n), not all zero.
        start: where to start from, as an earlier call on a similar matrix returned it.

    Returns:
        (m,) of unit length, and a start for the next call (an estimate of the second right singular vector).
    """
    if matrix.shape[0] < matrix.shape[1]:
        left, start = _dominant_eigenvector(matrix.T, start)
    else:
        right, start = _dominant_eigenvector(matrix, start)
        left = matrix @ right
    left = left / torch.linalg.vector_norm(left)
    return left * left[left.abs().argmax()].sign(), start


def _dominant_eigenvector(matrix: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Dominant eigenvector of matrix' matrix, (n,), for (m, n) with m >= n; and the next one's estimate."""
    if matrix.shape[1] <= LARGEST_DIRECT:
        return torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -1], None
    if start is None:
        start = matrix[matrix.square().sum(1).argmax()]
    # A little of everything, so that the start is never orthogonal to the vector sought.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(start), generator=generator, dtype=torch.float64).to(matrix)
    start = start / torch.linalg.vector_norm(start) + 0.1 * noise / torch.linalg.vector_norm(noise)
    for _ in range(20):
        ritz, converged = _lanczos(matrix, start)
        if converged:
            break
        start = ritz[:, 0] + 0.1 * ritz[:, 1]
    return ritz[:, 0], ritz[:, 1]


def _lanczos(matrix: Tensor, start: Tensor) -> tuple[Tensor, bool]:
    """Lanczos with full reorthogonalization on matrix' matrix (Golub & Van Loan, Matrix Computations, 10.3).

    Returns:
        (n, 2) estimates of the two dominant eigenvectors, and whether the first has converged to rounding.
    """
    size = min(LARGEST_KRYLOV_SPACE, matrix.shape[1])
    basis = matrix.new_zeros(size, matrix.shape[1])
    projected = torch.zeros(size, size, dtype=matrix.dtype)
    tolerance = torch.finfo(matrix.dtype).eps
    vector = start / torch.linalg.vector_norm(start)
    for step in range(size):
        basis[step] = vector
        vector = matrix.T @ (matrix @ vector)
        projected[step, step] = basis[step] @ vector
        for _ in range(2):
            vector = vector - basis[: step + 1].T @ (basis[: step + 1] @ vector)
        residual = float(torch.linalg.vector_norm(vector))
        is_last = step == size - 1
        if is_last or step % CHECK_EVERY == CHECK_EVERY - 1 or residual <= tolerance * projected[0, 0]:
            values, vectors = torch.linalg.eigh(projected[: step + 1, : step + 1])
            converged = residual * abs(float(vectors[-1, -1])) <= tolerance * float(values[-1])
            if converged or is_last or residual == 0:
                break
        projected[step, step + 1] = projected[step + 1, step] = residual
        vector = vector / residual
    top_two = vectors[:, -2:].flip(1).to(matrix)
    ritz = basis[: step + 1].T @ top_two
    if ritz.shape[1] == 1:
        ritz = ritz.repeat(1, 2)
    return ritz, converged or step + 1 == matrix.shape[1]
