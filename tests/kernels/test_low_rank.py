"""The parts of PowerSGD against NumPy in double."""

from typing import Any

import numpy as np
import pytest

from hpcvol.kernels.low_rank import project, project_back, reconstruct
from hpcvol.kernels.orthogonalise import inner, orthogonalise

pytestmark = pytest.mark.without_mpi

SHAPES = [(1, 1), (1, 9), (9, 1), (4, 8), (7, 33), (6, 4099), (130, 5), (0, 3), (3, 0)]
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
by_rank = pytest.mark.parametrize("rank", [1, 2, 4, 5, 8])


def random(seed: int, dtype: Any, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_near(found: Any, wanted: Any, terms: Any) -> None:
    """Within the error of a sum of products in any order; `terms` is the sum of their magnitudes."""
    bound = 4200 * np.finfo(found.dtype).eps * terms
    assert (np.abs(found - wanted) <= bound).all()


@by_dtype
@by_shape
@by_rank
def test_products(shape: tuple[int, int], rank: int, dtype: Any) -> None:
    x, residual = random(0, dtype, *shape), random(1, dtype, *shape)
    p, q = random(2, dtype, rank, shape[0]), random(3, dtype, rank, shape[1])
    found_p, found_q = np.full_like(p, np.nan), np.full_like(q, np.nan)
    kept, wide = x.copy(), x.astype(float)

    project(x, None, q, found_p)
    assert_near(found_p, q.astype(float) @ wide.T, np.abs(q) @ np.abs(x).T)
    project_back(x, p, found_q)
    assert_near(found_q, p.astype(float) @ wide, np.abs(p) @ np.abs(x))
    np.testing.assert_array_equal(x, kept)

    corrected = x + residual
    project(x, residual, q, found_p)
    np.testing.assert_array_equal(residual, corrected)
    np.testing.assert_array_equal(x, kept)
    assert_near(found_p, q.astype(float) @ corrected.astype(float).T, np.abs(q) @ np.abs(corrected).T)


@by_dtype
@by_shape
@by_rank
def test_what_is_decoded_and_what_stays_are_what_there_was(shape: tuple[int, int], rank: int, dtype: Any) -> None:
    matrix, start = random(0, dtype, *shape), random(1, dtype, *shape)
    p, q = random(2, dtype, rank, shape[0]), random(3, dtype, rank, shape[1])
    product, terms = p.astype(float).T @ q.astype(float), np.abs(p).T @ np.abs(q)
    residual, out = matrix.copy(), start.copy()
    reconstruct(p, q, residual, out)
    assert_near(residual, matrix - product, np.abs(matrix) + terms)
    assert_near(out, start + product, np.abs(start) + terms)
    assert_near(residual + (out - start), matrix, np.abs(matrix) + np.abs(start) + terms)
    alone, apart = matrix.copy(), start.copy()
    reconstruct(p, q, alone, None)
    reconstruct(p, q, None, apart)
    np.testing.assert_array_equal(alone, residual)
    np.testing.assert_array_equal(apart, out)


@by_dtype
def test_a_matrix_of_low_rank_is_sent_whole(dtype: Any) -> None:
    """One step from random vectors finds the very matrix, if its rank is no larger than theirs."""
    matrix = random(0, dtype, 60, 2) @ random(1, dtype, 2, 90)
    p, q = np.empty((4, 60), dtype), random(2, dtype, 4, 90)
    residual, out = np.zeros_like(matrix), np.zeros_like(matrix)
    project(matrix, residual, q, p)
    assert orthogonalise(p) >= 2
    project_back(residual, p, q)
    reconstruct(p, q, residual, out)
    scale = 200 * np.finfo(dtype).eps * np.abs(matrix).max()
    np.testing.assert_allclose(out, matrix, rtol=0, atol=scale)
    np.testing.assert_allclose(residual, 0, atol=scale)


@by_dtype
def test_error_feedback_sends_all_in_the_end(dtype: Any) -> None:
    """The sum of inputs is the sum of what was decoded and of the residual, however small the rank."""
    q = random(9, dtype, 1, 23)
    p = np.empty((1, 17), dtype)
    residual, decoded, total = np.zeros((17, 23), dtype), np.zeros((17, 23), dtype), np.zeros((17, 23))
    for step in range(30):
        x = random(step, dtype, 17, 23)
        total += x
        project(x, residual, q, p)
        orthogonalise(p)
        project_back(residual, p, q)
        reconstruct(p, q, residual, decoded)
    np.testing.assert_allclose(decoded + residual, total, atol=1000 * np.finfo(dtype).eps)
    assert np.linalg.norm(residual) < np.linalg.norm(total)


def nearly_dependent(dtype: Any) -> Any:
    """Läuchli's: one round of Gram-Schmidt leaves the last vectors far from orthogonal."""
    vectors = np.zeros((4, 5), dtype)
    vectors[:, 0] = 1
    vectors[np.arange(4), np.arange(1, 5)] = 50 * np.finfo(dtype).eps
    return vectors


@by_dtype
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_orthonormal_and_of_the_same_span(scale: float, dtype: Any) -> None:
    for vectors in (random(0, dtype, 8, 1009), random(1, dtype, 3, 3), nearly_dependent(dtype)):
        found = vectors * dtype(scale)
        rank = vectors.shape[0]
        assert orthogonalise(found) == rank
        wide = found.astype(float)
        np.testing.assert_allclose(wide @ wide.T, np.eye(rank), atol=20 * np.finfo(dtype).eps)
        outside = vectors - vectors.astype(float) @ wide.T @ wide
        assert np.abs(outside).max() <= 50 * np.finfo(dtype).eps * np.abs(vectors).max()


@by_dtype
def test_dependent_vectors_become_zero(dtype: Any) -> None:
    one, other = random(0, dtype, 2, 100)
    vectors = np.stack([one, 3 * one, other, one - 2 * other, np.zeros(100, dtype)]).astype(dtype)
    assert orthogonalise(vectors) == 2
    assert vectors[[0, 2]].any(axis=1).all()
    assert not vectors[[1, 3, 4]].any()


@by_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_hidden(bad: float, dtype: Any) -> None:
    matrix = random(0, dtype, 9, 5)
    matrix[4, 2] = bad
    p, q, out = np.empty((2, 9), dtype), random(1, dtype, 2, 5), np.zeros((9, 5), dtype)
    residual = np.zeros_like(matrix)
    with np.errstate(invalid="ignore"):
        project(matrix, residual, q, p)
        orthogonalise(p)
        project_back(residual, p, q)
        reconstruct(p, q, residual, out)
    assert np.isnan(out).all()


@by_dtype
def test_inner_products_keep_their_order(dtype: Any) -> None:
    for size in (0, 1, 8, 9, 1009):
        a, b = random(0, dtype, size), random(1, dtype, size)
        sums = [0.0] * 8
        for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
            sums[i % 8] += x * y
        wanted = 0.0
        for one in sums:
            wanted += one
        assert inner(a, b) == wanted
