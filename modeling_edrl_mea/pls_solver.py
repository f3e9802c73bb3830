"""Partial least squares from second moments: improved kernel PLS (Dayal & MacGregor 1997)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_DIRECT = 64  # up to this many rows or columns the Gram matrix is decomposed at once
LARGEST_KRYLOV_SPACE = 120  # vectors before a restart
KEPT_VECTORS = 16  # of a search where the next one, for a slightly different matrix, begins
CHECK_EVERY = 4  # vectors at least, or an eighth of those there are, between looks at convergence
PERTURBATION = 0.01  # of where a search begins, which might be orthogonal to the vector sought
APART = 0.1  # of the gap to the second eigenvalue: with a smaller residual, corrections converge to the first
MOST_CORRECTIONS = 8
ROUNDING = 16  # epsilons in a residual that rounding alone leaves
COMPONENTS_OF_A_DECOMPOSITION = 1 / 64  # of the narrower side: for fewer, multiplying by the matrix costs less


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
    n_components = min(n_components, len(xy_products))
    cross = _deflatable(xy_products, n_components)
    # What rounding leaves of cross-products that are used up, by numpy's convention for the rank of a matrix.
    noise = max(xy_products.shape) * torch.finfo(xy_products.dtype).eps
    floor = noise * float(torch.linalg.matrix_norm(xy_products))
    least_score = noise * float(x_squares.max())
    weights, rotations, loadings = (xy_products.new_zeros(n_components, len(xy_products)).T for _ in range(3))
    score_squares = xy_products.new_zeros(n_components)
    found = 0
    while found < n_components:
        weight = cross.dominant(floor)
        if weight is None:
            break
        rotation = weight.clone()
        for _ in range(2):  # the second pass restores the digits that the first one loses to cancellation
            rotation -= rotations[:, :found] @ (loadings[:, :found].T @ rotation)
        score_products = x_times(rotation)
        score_square = float(rotation @ score_products)
        if score_square <= least_score:
            break
        loading = score_products / score_square
        cross.deflate(rotation, loading, score_square)
        weights[:, found], rotations[:, found], loadings[:, found] = weight, rotation, loading
        score_squares[found] = score_square
        found += 1
    found_ones = (part[:, :found].contiguous() for part in (weights, rotations, loadings))
    return (*found_ones, cross.all_y_loadings(), score_squares[:found])


def _deflatable(matrix: Tensor, n_components: int) -> _Explicit | _Decomposed:
    narrow = min(matrix.shape)
    if narrow <= LARGEST_DIRECT or n_components < COMPONENTS_OF_A_DECOMPOSITION * narrow:
        return _Explicit(matrix)
    return _Decomposed(matrix, n_components)


class _Explicit:
    """Cross-products (P, q) that are deflated entry by entry."""

    def __init__(self, matrix: Tensor):
        self.matrix, self.y_loadings, self.start = matrix.clone(), [], None

    def dominant(self, floor: float) -> Tensor | None:
        """Dominant left singular vector (P,), its largest entry positive; None where all that is left is below
        `floor`."""
        if float(torch.linalg.matrix_norm(self.matrix)) <= floor:
            return None
        vector, self.start = dominant_left_singular_vector(self.matrix, self.start)
        return vector

    def deflate(self, rotation: Tensor, loading: Tensor, score_square: float) -> None:
        """Take a component out."""
        self.y_loadings.append(self.matrix.T @ rotation / score_square)
        self.matrix.addr_(loading, self.y_loadings[-1], alpha=-score_square)

    def all_y_loadings(self) -> Tensor:
        """(q, K) of the components taken out."""
        return torch.stack(self.y_loadings, 1) if self.y_loadings else self.matrix.new_zeros(self.matrix.shape[1], 0)


class _Decomposed:
    """The same as U S V' - L C': the singular value decomposition once, and a column of L and C for each component.

    In the bases U and V products with vectors cost no pass over a (P, q) matrix, and the search for a dominant vector
    needs tens of them. Loadings (P,) leave the span of U, which is then extended; loadings (q,) never leave that of V.
    """

    def __init__(self, matrix: Tensor, n_components: int):
        left, self.values, self.right = torch.linalg.svd(matrix, full_matrices=False)  # right: (n, q)
        n = len(self.values)
        self.basis = matrix.new_zeros(min(n + n_components, len(matrix)), len(matrix)).T  # U, and what extends it
        self.basis[:, :n] = left
        self.size = n  # of the basis
        self.loadings = matrix.new_zeros(n_components, self.basis.shape[1]).T  # L and C in the bases
        self.y_loadings = matrix.new_zeros(n_components, n).T
        self.found, self.start = 0, None

    def times(self, vectors: Tensor) -> Tensor:
        """(n,) or (n, s) → (size,) or (size, s)"""
        deflated = self.loadings[: self.size, : self.found] @ (self.y_loadings[:, : self.found].T @ vectors)
        deflated.neg_()[: len(vectors)] += self._values_for(vectors) * vectors
        return deflated

    def transposed_times(self, vectors: Tensor) -> Tensor:
        """(size,) or (size, s) → (n,) or (n, s)"""
        deflated = self.y_loadings[:, : self.found] @ (self.loadings[: self.size, : self.found].T @ vectors)
        return self._values_for(vectors) * vectors[: len(self.values)] - deflated

    def _values_for(self, vectors: Tensor) -> Tensor:
        return self.values if vectors.ndim == 1 else self.values[:, None]

    def square_times(self, vectors: Tensor) -> Tensor:
        """(n,) or (n, s), by the matrix and its transpose."""
        return self.transposed_times(self.times(vectors))

    def dominant(self, floor: float) -> Tensor | None:
        """As [`_Explicit.dominant`]."""
        if self.found == 0:
            self.start = torch.eye(len(self.values), KEPT_VECTORS, dtype=self.values.dtype)
        else:
            self.start = self._dominant_right_vectors()
        left = self.times(self.start[:, 0])
        if float(torch.linalg.vector_norm(left)) <= floor:
            return None
        return _signed(self.basis[:, : self.size] @ left)

    def _dominant_right_vectors(self) -> Tensor:
        """As [`_dominant_eigenvectors`]: a few steps of the search tell the first from the others, and corrections by
        a factored matrix then give its digits, several at a time."""
        vectors, gap, is_apart = _search(self.square_times, _with_a_little_of_everything(self.start), APART)
        polished = self._polished(vectors[:, 0], gap) if is_apart else None
        if polished is None:
            return _dominant_eigenvectors(self.square_times, vectors)
        vectors[:, 0] = polished
        return vectors

    def _polished(self, vector: Tensor, gap: float) -> Tensor | None:
        """An eigenvector exact to rounding by Jacobi-Davidson corrections (Sleijpen & van der Vorst 1996, SIAM J.
        Matrix Anal. Appl. 17:401) of an estimate (n,), the next eigenvalue being `gap` below its own; None where an
        eigenvalue lies above, or rounding prevails."""
        value, residual, distance = self._residual(vector)
        tolerance, shifted = ROUNDING * torch.finfo(vector.dtype).eps * value, None
        for _ in range(MOST_CORRECTIONS):
            if distance <= tolerance:
                return vector
            if shifted is None:
                shifted = _ShiftedSquare(self, value + 2 * distance**2 / gap)  # above it (Temple's bound)
                if shifted.n_positive:
                    return None
            along_residual, along_vector = shifted.solve(torch.stack([residual, vector], 1)).unbind(1)
            share = (vector @ along_residual) / (vector @ along_vector)
            vector = vector + share * along_vector - along_residual
            vector = vector / torch.linalg.vector_norm(vector)
            _, residual, distance = self._residual(vector)
        return None

    def _residual(self, vector: Tensor) -> tuple[float, Tensor, float]:
        """Rayleigh quotient of a vector (n,) of unit length, what the square of the matrix leaves beside it, and the
        length of that."""
        image = self.square_times(vector)
        value = vector @ image
        residual = image - value * vector
        return float(value), residual, float(torch.linalg.vector_norm(residual))

    def deflate(self, rotation: Tensor, loading: Tensor, score_square: float) -> None:
        """As [`_Explicit.deflate`]."""
        rotation = self.basis[:, : self.size].T @ rotation
        y_loading = self.transposed_times(rotation) / score_square
        self._extend_basis(loading)
        self.loadings[: self.size, self.found] = score_square * (self.basis[:, : self.size].T @ loading)
        self.y_loadings[:, self.found] = y_loading
        self.found += 1

    def all_y_loadings(self) -> Tensor:
        """As [`_Explicit.all_y_loadings`]."""
        return self.right.T @ self.y_loadings[:, : self.found]

    def _extend_basis(self, vector: Tensor) -> None:
        """By what of the vector (P,) lies outside."""
        if self.size == self.basis.shape[1]:
            return
        rest = _orthogonal_part(vector, self.basis[:, : self.size])
        length = torch.linalg.vector_norm(rest)
        if length > torch.finfo(rest.dtype).eps * torch.linalg.vector_norm(vector):
            self.basis[:, self.size] = rest / length
            self.size += 1


class _ShiftedSquare:
    """M'M - s·I of a decomposed matrix M, factored: it is a diagonal and W K W', of rank twice the components taken out
    (Woodbury's identity)."""

    def __init__(self, matrix: _Decomposed, shift: float):
        k, n = matrix.found, len(matrix.values)
        loadings, y_loadings = matrix.loadings[: matrix.size, :k], matrix.y_loadings[:, :k]
        self.diagonal = matrix.values.square()[:, None] - shift
        self.outer = torch.cat([matrix.values[:, None] * loadings[:n], y_loadings], 1)  # W
        self.scaled = self.outer / self.diagonal
        inner = self.outer.T @ self.scaled
        inner[:k, :k] -= loadings.T @ loadings  # with the unit matrices: the inverse of K
        inner.diagonal(k).sub_(1)
        inner.diagonal(-k).sub_(1)
        self.factors = torch.linalg.ldl_factor(inner)

    @property
    def n_positive(self) -> int:
        """Eigenvalues of M'M above the shift, by Sylvester's law of inertia: K has as many positive as negative."""
        values, pivots = self.factors
        in_pairs = pivots < 0  # each pair has one of either sign
        n_negative = int((values.diagonal()[~in_pairs] < 0).sum()) + int(in_pairs.sum()) // 2
        return int((self.diagonal > 0).sum()) + n_negative - len(pivots) // 2

    def solve(self, right: Tensor) -> Tensor:
        """(n, s)"""
        right = right / self.diagonal
        return right - self.scaled @ torch.linalg.ldl_solve(*self.factors, self.outer.T @ right)


def _orthogonal_part(vector: Tensor, basis: Tensor) -> Tensor:
    """Of (n,) to orthonormal columns (n, s); the second pass removes what is rounding in a small rest."""
    for _ in range(2):
        vector = torch.addmv(vector, basis, basis.T @ vector, alpha=-1)
    return vector


def _direction_outside(vector: Tensor, basis: Tensor) -> Tensor:
    """Of unit length and orthogonal to orthonormal columns (n, s), s < n: that of (n,), or any other where this lies in
    their span and rounding alone is left. Repeated until a pass takes little away (Daniel, Gragg, Kaufman & Stewart
    1976, Math. Comput. 30:772)."""
    vector = vector / torch.linalg.vector_norm(vector)
    for attempt in range(8):
        rest = torch.addmv(vector, basis, basis.T @ vector, alpha=-1)
        length = float(torch.linalg.vector_norm(rest))
        if length > 0.5:
            break
        vector = _noise_like(rest) if attempt == 2 or not length > 0 else rest / length
    return rest / length


def _noise_like(vector: Tensor) -> Tensor:
    """Of unit length, and the same at every call."""
    noise = torch.randn(len(vector), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(vector)
    return noise / torch.linalg.vector_norm(noise)


def dominant_left_singular_vector(matrix: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The left singular vector of the largest singular value, its largest entry positive.

    Args:
        matrix: (m, n), not all zero.
        start: (min(m, n), any) where to start from, as an earlier call on a similar matrix returned it.

    Returns:
        (m,) of unit length, and a start for the next call: an estimate (min(m, n), 1) of the dominant singular
        vector on the narrower side.
    """
    is_wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if is_wide else matrix
    if tall.shape[1] <= LARGEST_DIRECT:
        vector, start = torch.linalg.eigh(tall.T @ tall).eigenvectors[:, -1], None
    else:
        start = tall[tall.square().sum(1).argmax()][:, None] if start is None else start
        start = _dominant_eigenvectors(lambda vectors: tall.T @ (tall @ vectors), start)[:, :1]
        vector = start[:, 0]
    return _signed(vector if is_wide else matrix @ vector), start


def _signed(vector: Tensor) -> Tensor:
    """Of unit length, and its largest entry positive."""
    return vector / torch.linalg.vector_norm(vector) * vector[vector.abs().argmax()].sign()


def _dominant_eigenvectors(times: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Orthonormal estimates (n, `KEPT_VECTORS`) of the dominant eigenvectors of a positive semidefinite matrix, by its
    product with vectors (n,) or (n, s); the first is exact to rounding. `start`: (n, s) where to start from."""
    for _ in range(20):
        start, _, converged = _search(times, _with_a_little_of_everything(start))
        if converged:
            break
    return start


def _with_a_little_of_everything(start: Tensor) -> Tensor:
    """Orthonormal columns, the first of which is never orthogonal to the vector sought."""
    first = start[:, 0] / torch.linalg.vector_norm(start[:, 0]) + PERTURBATION * _noise_like(start[:, 0])
    return torch.linalg.qr(torch.cat([first[:, None], start[:, 1:]], 1)).Q


def _search(times: Callable[[Tensor], Tensor], start: Tensor, apart: float = 0.0) -> tuple[Tensor, float, bool]:
    """Rayleigh-Ritz estimates from a Krylov space augmented by `start` (Morgan 1995, SIAM J. Matrix Anal. Appl.
    16:1154), with full reorthogonalization; how far the first eigenvalue is above the second, and whether the first
    vector has converged to rounding, or its residual to a share `apart` of that."""
    (n, size), known = start.shape, 0
    basis, images = (start.new_zeros(min(LARGEST_KRYLOV_SPACE, n), n).T for _ in range(2))
    projected = start.new_zeros(basis.shape[1], basis.shape[1])  # its lower triangle
    basis[:, :size], images[:, :size] = start, times(start)
    while True:
        projected[known:size, :size] = basis[:, known:size].T @ images[:, :size]
        values, vectors = torch.linalg.eigh(projected[:size, :size])
        estimate = basis[:, :size] @ vectors[:, -1]
        residual = images[:, :size] @ vectors[:, -1] - values[-1] * estimate
        gap = float(values[-1] - values[-2]) if size > 1 else 0.0
        tolerance = max(ROUNDING * torch.finfo(start.dtype).eps * float(values[-1]), apart * gap)
        converged = float(torch.linalg.vector_norm(residual)) <= tolerance or size == n
        if converged or size == basis.shape[1]:
            return basis[:, :size] @ vectors[:, -KEPT_VECTORS:].flip(1), gap, converged
        known, size = size, min(size + max(CHECK_EVERY, size // 8), basis.shape[1])
        for place in range(known, size):
            basis[:, place] = _direction_outside(residual, basis[:, :place])
            residual = images[:, place] = times(basis[:, place])
