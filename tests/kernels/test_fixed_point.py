"""The exact sum's kernels against oracles in Python's own integers and fractions."""

import math
import os
import struct
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcvol.kernels.fixed_point import (
    BLOCK_NUMEL,
    INFINITE,
    NOT_A_NUMBER,
    ZERO,
    accumulate,
    mean,
    means,
    sum_of_squares,
)

pytestmark = pytest.mark.without_mpi

SIZES = [0, 1, 7, 8, 9, 997]
FLOATS: list[type[np.floating]] = [np.float32, np.float64]
LARGEST = 2**62


def rounded(values: NDArray[np.floating], scale: float) -> list[int]:
    """round(value * scale), ties to even, without any floating point but the product in double."""
    return [round(Fraction(float(value) * scale)) for value in values]


def spread(dtype: type[np.floating], size: int, seed: int) -> NDArray[np.floating]:
    """Values over many magnitudes, zeros and negative zeros among them."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(size) * np.exp2(generator.integers(-60, 20, size).astype(float))
    values[generator.random(size) < 0.1] = 0.0
    values[generator.random(size) < 0.1] = -0.0
    return np.asarray(values, dtype)


def accumulated(values: NDArray[np.floating], scale: float, weight: int = 1) -> tuple[list[int], list[int]]:
    """The integers that `accumulate` adds to zeros under one scale, and the blocks' magnitudes."""
    blocks = -(-values.size // BLOCK_NUMEL)
    total, magnitudes = np.zeros(values.size, np.int64), np.full(blocks, ZERO, np.int32)
    with np.errstate(invalid="ignore"):  # without the compiler NumPy warns of what infinity and NaN are rounded to
        accumulate(values, np.full(blocks, scale), weight, total, magnitudes)
    return total.tolist(), magnitudes.tolist()


def magnitude(values: NDArray[np.floating], weight: int) -> int:
    """The smallest m with |weight * value| < 2^m."""
    largest = weight * float(np.abs(values).max())
    return math.frexp(largest)[1] if largest else int(ZERO)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weight", [1, 3, 2**29 - 1])
def test_accumulate_adds_what_the_oracle_rounds(dtype: type[np.floating], size: int, weight: int) -> None:
    values = spread(dtype, size, seed=size)
    starts = range(0, size, BLOCK_NUMEL)
    scales = np.exp2(np.arange(len(starts)) % 3 * 4.0 - 3)
    before = np.random.default_rng(1).integers(-(2**61), 2**61, size)
    total, kept = before.copy(), values.copy()
    magnitudes = np.full(len(starts), -30, np.int32)
    accumulate(values, scales, weight, total, magnitudes)
    wanted = [
        int(before[i]) + q
        for block, start in enumerate(starts)
        for i, q in enumerate(rounded(values[start : start + BLOCK_NUMEL], weight * scales[block]), start)
    ]
    assert total.tolist() == wanted
    blocks = [values[start : start + BLOCK_NUMEL] for start in starts]
    assert magnitudes.tolist() == [max(-30, magnitude(block, weight)) for block in blocks]
    np.testing.assert_array_equal(values, kept)


@given(st.floats(-LARGEST, LARGEST, allow_subnormal=True))
@example(0.5)
@example(1.5)
@example(-2.5)
@example(math.nextafter(0.5, 0))
@example(math.nextafter(0.5, 1))
@example(2.0**31 + 0.5)
@example(2.0**32 + 0.5)
@example(-(2.0**32) - 0.5)
@example(3 * 2.0**31)  # a tie of the high part
@example(3 * 2.0**31 + 0.5)
@example(2.0**51 + 0.5)
@example(2.0**52 - 0.5)
@example(2.0**53 - 1)
@example(2.0**62)
@example(-(2.0**62))
@example(math.nextafter(2.0**62, 0))
@example(-0.0)
@example(5e-324)
def test_rounding_is_to_nearest_even_up_to_two_to_the_62(value: float) -> None:
    (total,), (found,) = accumulated(np.array([value]), 1.0)
    assert total == round(Fraction(value)) == int(np.rint(value))
    assert found == (math.frexp(value)[1] if abs(value) >= 2.0**-1022 else ZERO if value == 0 else -1022)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 2**29 - 1))
def test_weighted_float32_is_rounded_once(value: float, weight: int) -> None:
    """The product with a weight below 2^29 is exact, so that only the rounding to an integer is an error."""
    exponent = 61 - math.frexp(weight * value)[1] if value else 0
    (total,), (found,) = accumulated(np.array([value], np.float32), math.ldexp(1.0, exponent), weight)
    assert total == round(Fraction(value) * weight * Fraction(2) ** exponent)
    assert found == (math.frexp(weight * value)[1] if value else ZERO)


@pytest.mark.parametrize("dtype", FLOATS)
def test_denormals_are_not_lost(dtype: type[np.floating]) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    values = np.array([tiny, -3 * tiny, 0], dtype)
    exponent = 200 if dtype is np.float32 else 900
    total, (found,) = accumulated(values, 2.0**exponent)
    assert total == rounded(values, 2.0**exponent)
    assert found == (-147 if dtype is np.float32 else -1022)  # 3 · 2^-149; in double all of them are one


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, 7, 8, 9, 997])
def test_the_magnitude_tells_infinity_and_nan(dtype: type[np.floating], size: int) -> None:
    for place in {0, size // 2, size - 1}:
        values = np.ones(size, dtype)
        for bad in (math.inf, -math.inf):
            values[place] = bad
            assert accumulated(values, 1.0)[1][place // BLOCK_NUMEL] == INFINITE
        values[place // BLOCK_NUMEL * BLOCK_NUMEL] = math.inf
        for bad in (math.nan, -math.nan, struct.unpack("<d", b"\x01\0\0\0\0\0\xf8\xff")[0]):
            values[place] = bad
            found = accumulated(values, 1.0)[1]
            assert found[place // BLOCK_NUMEL] == NOT_A_NUMBER
            assert all(one == 1 for block, one in enumerate(found) if block != place // BLOCK_NUMEL)


@pytest.mark.parametrize("dtype", FLOATS)
def test_means_of_blocks_leave_the_gaps_alone(dtype: type[np.floating]) -> None:
    total = np.random.default_rng(0).integers(-(2**50), 2**50, 700)
    starts, numels = np.array([600, 0, 300]), np.array([100, 256, 1])
    scales = np.array([2.0**30, 2.0**-2, 2.0**9])
    out, wanted = np.full(700, 7, dtype), np.full(700, 7, dtype)
    means(total, starts, numels, scales, 12.0, out)
    for start, numel, scale in zip(starts, numels, scales, strict=True):
        mean(total[start : start + numel], scale, 12.0, wanted[start : start + numel])
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weight", [1, 8, 7, 1000003])
def test_mean_divides_in_double_and_rounds(dtype: type[np.floating], size: int, weight: int) -> None:
    total = np.random.default_rng(size).integers(-(2**62), 2**62, size)
    out = np.empty(size, dtype)
    mean(total, 2.0**44, float(weight), out)
    np.testing.assert_array_equal(out, (total.astype(np.float64) / 2.0**44 / weight).astype(dtype))
    for got, integer in zip(out.astype(float), total, strict=True):
        exact = Fraction(int(integer), 2**44 * weight)
        assert abs(Fraction(float(got)) - exact) <= abs(exact) * Fraction(float(np.finfo(dtype).eps)) * Fraction(51, 50)


def squares_oracle(values: NDArray[np.floating]) -> float:
    """The documented order, one operation at a time in Python floats."""
    lanes = [0.0] * 8
    for i, value in enumerate(values.tolist()):
        lanes[i % 8] += value * value
    a, b, c, d, e, f, g, h = lanes
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_sum_of_squares_keeps_its_order(dtype: type[np.floating], size: int) -> None:
    values = np.random.default_rng(size).standard_normal(size).astype(dtype)
    found = float(sum_of_squares(values))
    assert found == squares_oracle(values)
    assert found == pytest.approx(math.fsum(float(x) ** 2 for x in values), rel=1e-14)


def test_sum_of_squares_of_large_float32_does_not_overflow() -> None:
    assert sum_of_squares(np.full(9, 1e30, np.float32)) == pytest.approx(9e60, rel=1e-6)


PLAIN = """
import numpy as np
from hpcvol.kernels.fixed_point import (
    BLOCK_NUMEL,
    INFINITE,
    NOT_A_NUMBER,
    ZERO,
    accumulate,
    mean,
    means,
    sum_of_squares,
)
r = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    for size in (0, 1, 7, 8, 9, 297):
        x = (r.standard_normal(size) * np.exp2(r.integers(-50, 18, size).astype(float))).astype(dtype)
        total, out = r.integers(-2**61, 2**61, size), np.empty(size, dtype)
        blocks = -(-size // BLOCK_NUMEL)
        magnitudes = np.full(blocks, ZERO, np.int32)
        accumulate(x, np.full(blocks, 2.0**38), 3, total, magnitudes)
        mean(total, 2.0**38, 3.0, out)
        print(magnitudes.tolist(), total.tolist(), out.tobytes().hex(), float(sum_of_squares(x)).hex())
"""


def test_same_bits_without_the_compiler() -> None:
    def output(**variables: str) -> str:
        argv = [sys.executable, "-W", "error", "-c", PLAIN]
        environment = {**os.environ, **variables}
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout

    plain = output(NUMBA_DISABLE_JIT="1")
    assert plain.count("\n") == 12
    assert plain == output(NUMBA_DISABLE_JIT="0")
