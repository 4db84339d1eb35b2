"""Robust combinations' kernels against NumPy."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from hpcvol.kernels import robust

pytestmark = pytest.mark.without_mpi

SHAPES = [(1, 5), (2, 1), (3, 0), (4, 17), (5, 1), (7, 1009)]
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def stack_of(shape: tuple[int, int], dtype: Any) -> Any:
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


@by_dtype
@by_shape
def test_trimmed_means(shape: tuple[int, int], dtype: Any) -> None:
    stack = stack_of(shape, dtype)
    kept, members = stack.copy(), shape[0]
    for trim in range((members - 1) // 2 + 1):
        out = np.full(shape[1], np.nan, dtype)
        robust.trimmed_mean(stack, trim, out)
        wanted = np.sort(stack.astype(np.float64), axis=0)[trim : members - trim].mean(axis=0)
        np.testing.assert_allclose(out, wanted, rtol=1e-6 if dtype == np.float32 else 1e-12, atol=1e-12)
    np.testing.assert_allclose(out, np.median(stack.astype(np.float64), axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(stack, kept)


@by_dtype
def test_what_is_no_number_is_an_outlier(dtype: Any) -> None:
    stack = np.array([[1, 5, 2], [np.nan, -np.inf, np.inf], [3, 4, 1]], dtype)
    out = np.zeros(3, dtype)
    robust.trimmed_mean(stack, 1, out)
    np.testing.assert_array_equal(out, [3, 4, 2])
    distances = np.zeros((3, 3))
    robust.squared_distances(stack, distances)
    np.testing.assert_array_equal(distances, [[0, np.inf, 6], [np.inf, 0, np.inf], [6, np.inf, 0]])
    robust.move(out, stack, np.array([1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(out, np.array([3 - 2 / 3, 4 + 1 / 3, 2 - 1 / 3], dtype))


@by_dtype
@by_shape
def test_distances(shape: tuple[int, int], dtype: Any) -> None:
    stack = stack_of(shape, dtype)
    wide = stack.astype(np.float64)
    found = np.full((shape[0], shape[0]), np.nan)
    robust.squared_distances(stack, found)
    np.testing.assert_allclose(found, ((wide[:, None] - wide[None]) ** 2).sum(axis=2), rtol=1e-12)
    from_first = np.full(shape[0], np.nan)
    robust.squared_distances_from(stack[0].copy(), stack, from_first)
    np.testing.assert_allclose(from_first, found[0], rtol=1e-12)


@by_dtype
@by_shape
def test_moving(shape: tuple[int, int], dtype: Any) -> None:
    stack = stack_of(shape, dtype)
    shares = np.random.default_rng(1).random(shape[0])
    centre = np.arange(shape[1]).astype(dtype)
    wanted = centre + (shares[:, None] * (stack.astype(np.float64) - centre)).mean(axis=0)
    robust.move(centre, stack, shares)
    np.testing.assert_allclose(centre, wanted, rtol=1e-6 if dtype == np.float32 else 1e-12, atol=1e-6)


PLAIN = """
import numpy as np
from hpcvol.kernels import robust
stack = np.random.default_rng(0).standard_normal((5, 33)).astype(np.float32)
stack[1, 3], stack[2, 4] = np.nan, np.inf
out, distances, shares = np.zeros(33, np.float32), np.zeros((5, 5)), np.array([1, 0, 0, 0.5, 1])
for trim in range(3):
    robust.trimmed_mean(stack, trim, out)
    print(out.tobytes().hex())
robust.squared_distances(stack, distances)
robust.move(out, stack, shares)
print(distances.tobytes().hex(), out.tobytes().hex())
"""


def test_same_bits_without_the_compiler() -> None:
    def output(**variables: str) -> str:
        argv = [sys.executable, "-W", "error", "-c", PLAIN]
        environment = {**os.environ, **variables}
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout

    plain = output(NUMBA_DISABLE_JIT="1")
    assert plain.count("\n") == 4
    assert plain == output(NUMBA_DISABLE_JIT="0")
