"""The solver finds the singular vectors and components that linear algebra defines, by whichever way it takes."""

import pytest
import torch

from modeling_edrl_mea import pls_solver
from modeling_edrl_mea.pls_solver import dominant_left_singular_vector, kernel_pls


def cross_products(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (1, 5), (5, 1), (300, 90), (90, 300)])
def test_the_dominant_vector_is_that_of_the_singular_value_decomposition(shape):
    matrix = cross_products(*shape)
    found, _ = dominant_left_singular_vector(matrix)
    expected = torch.linalg.svd(matrix).U[:, 0]
    torch.testing.assert_close(found, expected * expected[expected.abs().argmax()].sign(), atol=1e-9, rtol=0)


def test_a_start_orthogonal_to_the_vector_finds_it_all_the_same():
    matrix = cross_products(200, 80)
    other = torch.linalg.svd(matrix).Vh[1:2].T
    with_start, _ = dominant_left_singular_vector(matrix, other)
    torch.testing.assert_close(with_start, dominant_left_singular_vector(matrix)[0], atol=1e-9, rtol=0)


def test_lanczos_and_the_direct_decomposition_agree(monkeypatch):
    matrix = cross_products(60, 40)
    direct, _ = dominant_left_singular_vector(matrix)
    monkeypatch.setattr(pls_solver, "LARGEST_DIRECT", 4)
    torch.testing.assert_close(dominant_left_singular_vector(matrix)[0], direct, atol=1e-9, rtol=0)


def test_scores_are_orthogonal_and_loadings_are_their_regressions():
    x, y = torch.randn(50, 9, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
    squares = x.T @ x
    weights, rotations, loadings, y_loadings, score_squares = kernel_pls(
        squares.__matmul__, squares.diagonal(), x.T @ y, 5
    )
    scores = x @ rotations
    torch.testing.assert_close(scores.T @ scores, torch.diag(score_squares), atol=1e-9, rtol=0)
    torch.testing.assert_close(weights.T @ weights, torch.eye(5, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(loadings, x.T @ scores / score_squares)
    torch.testing.assert_close(y_loadings, y.T @ scores / score_squares)


def test_the_search_ends_when_nothing_covaries_any_more():
    x = torch.randn(50, 9, dtype=torch.float64)
    y = x[:, :1] @ torch.randn(1, 4, dtype=torch.float64)  # of rank one, which some components use up
    squares = x.T @ x
    *_, score_squares = kernel_pls(squares.__matmul__, squares.diagonal(), x.T @ y, 9)
    rotations = kernel_pls(squares.__matmul__, squares.diagonal(), x.T @ y, 20)[1]
    assert len(score_squares) == rotations.shape[1] <= 9
    predicted = x @ rotations @ torch.linalg.lstsq(x @ rotations, y).solution
    torch.testing.assert_close(predicted, y, atol=1e-8, rtol=0)


def decomposed(n_deflated: int) -> tuple[pls_solver._Decomposed, torch.Tensor]:
    """Cross-products after some components were taken out, by their decomposition and entry by entry."""
    x, y = torch.randn(200, 100, dtype=torch.float64), torch.randn(200, 90, dtype=torch.float64)
    matrix = pls_solver._Decomposed(x.T @ y, 30)
    explicit = pls_solver._Explicit(x.T @ y)
    for _ in range(n_deflated):
        rotation = explicit.dominant(0.0)
        score = x @ rotation
        for one in (matrix, explicit):
            one.deflate(rotation, x.T @ score / (score @ score), float(score @ score))
    return matrix, explicit.matrix


@pytest.mark.parametrize("n_deflated", [1, 5, 30])
def test_a_shifted_square_is_solved_and_its_eigenvalues_are_counted(n_deflated):
    matrix, explicit = decomposed(n_deflated)
    values, basis = torch.linalg.eigh(matrix.right @ explicit.T @ explicit @ matrix.right.T)
    for above in (0, 1, 4):
        shift = float((values[-above - 1] + (values[-above] if above else 2 * values[-1])) / 2)
        shifted = pls_solver._ShiftedSquare(matrix, shift)
        assert shifted.n_positive == above
        right = torch.randn(len(values), 2, dtype=torch.float64)
        expected = basis @ ((basis.T @ right) / (values - shift)[:, None])
        torch.testing.assert_close(shifted.solve(right), expected, atol=0, rtol=1e-6)


def test_an_estimate_of_another_vector_is_not_polished():
    matrix, explicit = decomposed(5)
    square = matrix.right @ explicit.T @ explicit @ matrix.right.T
    *_, second, first = torch.linalg.eigh(square).eigenvectors.T
    assert matrix._polished(second + 1e-6 * first, gap=1.0) is None
    found = matrix._polished(first + 1e-6 * second, gap=1.0)
    assert float(abs(found @ first)) == pytest.approx(1, abs=1e-13)


def test_components_are_the_same_without_corrections(monkeypatch):
    x, y = torch.randn(300, 90, dtype=torch.float64), torch.randn(300, 80, dtype=torch.float64)
    squares = x.T @ x
    polished = kernel_pls(squares.__matmul__, squares.diagonal(), x.T @ y, 40)
    monkeypatch.setattr(pls_solver, "MOST_CORRECTIONS", 0)
    for found, expected in zip(polished, kernel_pls(squares.__matmul__, squares.diagonal(), x.T @ y, 40), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def greatest_covariances(squares: torch.Tensor, cross: torch.Tensor, n_components: int) -> list[float]:
    """Of one component after another with its score, by a decomposition of what the last one left."""
    found = []
    for _ in range(n_components):
        weight = torch.linalg.svd(cross).U[:, 0]
        found.append(float((cross.T @ weight).norm()))
        # The score's part of X, which PLS takes out of both sides alike.
        share = squares @ weight / (weight @ squares @ weight)
        squares = squares - torch.outer(share, squares @ weight)
        cross = cross - torch.outer(share, cross.T @ weight)
    return found


@pytest.mark.parametrize("shape", [(60, 30, 25), (40, 40, 30), (100, 25, 60), (200, 64, 64)])
@pytest.mark.parametrize("kind", ["noise", "nearly all alike", "of low rank"])
def test_every_component_has_the_greatest_covariance_left(kind, shape, monkeypatch):
    monkeypatch.setattr(pls_solver, "LARGEST_DIRECT", 8)
    n, p, q = shape
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x, y, mix = (torch.randn(*size, generator=generator).double() for size in ((n, p), (n, q), (p, 3)))
        if kind == "nearly all alike":
            x = torch.linalg.qr(x).Q
            y = x[:, :q]
        if kind == "of low rank":
            y = x @ mix @ y[:3]
        x, y = x - x.mean(0), y - y.mean(0)
        squares, cross = x.T @ x, x.T @ y
        weights, _, _, y_loadings, score_squares = kernel_pls(squares.__matmul__, squares.diagonal(), cross, 10)
        found = y_loadings.norm(dim=0) * score_squares
        expected = torch.tensor(greatest_covariances(squares, cross, len(found)), dtype=torch.float64)
        torch.testing.assert_close(found, expected, atol=1e-9 * float(expected[0]), rtol=0)
