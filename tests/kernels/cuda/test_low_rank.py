"""The parts of PowerSGD against NumPy in double, and where bits are the same, against the CPU's kernels."""

from typing import Any

import numpy as np
import pytest
from numba import cuda

from hpcvol.kernels import low_rank as on_cpu
from hpcvol.kernels import orthogonalise as orthogonalise_on_cpu
from hpcvol.kernels.cuda.low_rank import project, project_back, reconstruct
from hpcvol.kernels.cuda.orthogonalise import orthogonalise

pytestmark = [pytest.mark.without_mpi, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
by_shape = pytest.mark.parametrize("shape", [(1, 1), (0, 3), (3, 0), (7, 37)], ids=str)
by_rank = pytest.mark.parametrize("rank", [1, 6])


def random(seed: int, dtype: Any, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_near(found: Any, wanted: Any, terms: Any) -> None:
    """Within the error of a sum of products in any order; `terms` is the sum of their magnitudes."""
    assert (np.abs(found - wanted) <= 150 * np.finfo(found.dtype).eps * terms).all()


@by_shape
@pytest.mark.parametrize(("rank", "dtype"), [(1, np.float64), (6, np.float32)])
def test_products(shape: tuple[int, int], rank: int, dtype: Any) -> None:
    x, residual = random(0, dtype, *shape), random(1, dtype, *shape)
    p, q = random(2, dtype, rank, shape[0]), random(3, dtype, rank, shape[1])
    corrected = x + residual
    left, found = cuda.to_device(residual), cuda.to_device(p)
    project(cuda.to_device(x), left, cuda.to_device(q), found)
    np.testing.assert_array_equal(left.copy_to_host(), corrected)
    assert_near(found.copy_to_host(), q.astype(float) @ corrected.astype(float).T, np.abs(q) @ np.abs(corrected).T)
    found = cuda.to_device(q)
    project_back(cuda.to_device(x), cuda.to_device(p), found)
    assert_near(found.copy_to_host(), p.astype(float) @ x.astype(float), np.abs(p) @ np.abs(x))


def test_many_rows_are_added_in_parts() -> None:
    x, p, q = random(0, float, 300, 2), random(1, float, 1, 300), cuda.to_device(np.zeros((1, 2)))
    project_back(cuda.to_device(x), cuda.to_device(p), q)
    np.testing.assert_allclose(q.copy_to_host(), p @ x, rtol=1e-12)


def test_products_without_feedback_leave_the_matrix_alone() -> None:
    x, q, p = random(0, float, 5, 9), random(1, float, 2, 9), cuda.to_device(np.zeros((2, 5)))
    matrix = cuda.to_device(x)
    project(matrix, None, cuda.to_device(q), p)
    np.testing.assert_allclose(p.copy_to_host(), q @ x.T, rtol=1e-12)
    np.testing.assert_array_equal(matrix.copy_to_host(), x)


@by_dtype
@by_shape
@by_rank
@pytest.mark.parametrize("kept", [(0,), (1,), (0, 1)])
def test_reconstruction_is_the_same(shape: tuple[int, int], rank: int, kept: tuple[int, ...], dtype: Any) -> None:
    p, q = random(2, dtype, rank, shape[0]), random(3, dtype, rank, shape[1])
    wanted = [random(i, dtype, *shape) if i in kept else None for i in (0, 1)]
    found = [None if array is None else cuda.to_device(array) for array in wanted]
    on_cpu.reconstruct(p, q, *wanted)
    reconstruct(cuda.to_device(p), cuda.to_device(q), *found)
    for i in kept:
        np.testing.assert_array_equal(found[i].copy_to_host(), wanted[i])


@by_dtype
@pytest.mark.parametrize("shape", [(3, 300), (1, 1)], ids=str)
def test_vectors_become_those_of_a_cpu(shape: tuple[int, int], dtype: Any) -> None:
    wanted = random(0, dtype, *shape)
    found = cuda.to_device(wanted)
    assert orthogonalise(found) == orthogonalise_on_cpu.orthogonalise(wanted) == shape[0]
    np.testing.assert_allclose(found.copy_to_host(), wanted, atol=4 * np.finfo(dtype).eps)


@by_dtype
def test_dependent_vectors_become_zero(dtype: Any) -> None:
    one, other = random(0, dtype, 2, 50)
    found = cuda.to_device(np.stack([one, 3 * one, other, one - 2 * other, np.zeros(50, dtype)]).astype(dtype))
    assert orthogonalise(found) == 2
    vectors = found.copy_to_host()
    assert vectors[[0, 2]].any(axis=1).all()
    assert not vectors[[1, 3, 4]].any()
    assert orthogonalise(cuda.to_device(np.zeros((0, 3), dtype))) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    vectors = random(0, np.float32, 3, 40)
    vectors[1, 7] = bad
    found = cuda.to_device(vectors)
    orthogonalise(found)
    assert np.isfinite(found.copy_to_host()[0]).all()
    assert np.isnan(found.copy_to_host()[1:]).all()
