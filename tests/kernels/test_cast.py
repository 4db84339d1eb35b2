"""Casts to 16 bits against ml_dtypes and NumPy."""

import os
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcvol.kernels import cast

pytestmark = pytest.mark.without_mpi

FORMATS = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]
BLOCK = 256
by_format = pytest.mark.parametrize("number", FORMATS, ids=lambda number: number.name)
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
by_numel = pytest.mark.parametrize("numel", [0, 1, 15, 17, BLOCK - 1, BLOCK, BLOCK + 1, 17 * BLOCK + 3])

Vector = npt.NDArray[Any]


def encoded(x: Vector, number: "np.dtype[Any]") -> Vector:
    codes = np.full(x.size, 0x1234, np.uint16)
    with np.errstate(all="ignore"):
        cast.encode(x, cast.FORMATS[number.name], codes)
    return codes


def decoded(codes: Vector, number: "np.dtype[Any]", dtype: Any) -> Vector:
    out = np.full(codes.size, 7, dtype)
    cast.decode(codes, cast.FORMATS[number.name], out)
    return out


def rounded(x: Vector, number: "np.dtype[Any]") -> Vector:
    """The oracle, in double: multiples of the unit in the last place that a number of this size has, ties to even."""
    limits = ml_dtypes.finfo(number)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        exponent = np.maximum(np.frexp(wide)[1] - 1, limits.minexp) - limits.nmant
        near = np.ldexp(np.rint(np.ldexp(wide, -exponent)), exponent)
        return np.where(np.abs(near) > float(limits.max), np.copysign(np.inf, near), near)


def difficult(dtype: Any, number: "np.dtype[Any]") -> Vector:
    """Numbers of the format, what lies just beside them, what lies between them, and anything."""
    with np.errstate(all="ignore"):
        near = np.arange(1 << 16, dtype=np.uint16).view(number).astype(dtype)
        near = near[np.isfinite(near)]
        between = near + (np.roll(near, -1) - near) / 2
        ties = np.concatenate([between, np.nextafter(between, dtype(0)), np.nextafter(between, dtype(np.inf))])
        bits = np.random.default_rng(0).integers(0, 1 << 63, 50_000, np.uint64)
        anything = bits.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
        beside = np.nextafter(near, dtype(np.inf))
        special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 65519.99, 65520.0, 5e-324, 1e300], dtype)
        return np.concatenate([near, beside, ties, anything, special])


@by_format
@by_dtype
def test_rounding_is_to_nearest_even_and_once(number: "np.dtype[Any]", dtype: Any) -> None:
    x = difficult(dtype, number)[:: 97 if os.environ.get("NUMBA_DISABLE_JIT") == "1" else 1].copy()
    found = decoded(encoded(x, number), number, np.float64)
    expected = rounded(x, number)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found)[~np.isnan(x)], np.signbit(x)[~np.isnan(x)])


@by_format
@by_dtype
def test_every_number_is_decoded_exactly(number: "np.dtype[Any]", dtype: Any) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(decoded(codes, number, dtype), codes.view(number).astype(dtype))


@by_format
def test_any_nan_becomes_the_quiet_one(number: "np.dtype[Any]") -> None:
    x = np.array([0x7F800001, 0xFFC00000, 0xFF812345, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert set(encoded(x, number).tolist()) == {0x7FC0 if number.name == "bfloat16" else 0x7E00}


@by_format
@by_dtype
@by_numel
def test_lengths_alignment_and_accumulation(number: "np.dtype[Any]", dtype: Any, numel: int) -> None:
    memory = np.random.default_rng(numel).standard_normal(numel + 1).astype(dtype)
    x, kept = memory[1:], memory.copy()
    codes = encoded(x, number)
    np.testing.assert_array_equal(codes, x.astype(number).view(np.uint16))
    np.testing.assert_array_equal(memory, kept)
    out = np.random.default_rng(1).standard_normal(numel).astype(dtype)
    expected = out + codes.view(number).astype(dtype)
    cast.accumulate(codes, cast.FORMATS[number.name], out)
    np.testing.assert_array_equal(out, expected)


@by_format
def test_large_payloads_go_around_the_cache_unchanged(number: "np.dtype[Any]") -> None:
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("too slow without the compiler")
    x = np.random.default_rng(0).standard_normal((cast.STREAMED_NBYTES >> 1) + 12_345, np.float32)
    for offset in (0, 1):
        memory = np.zeros(x.size + 2, np.uint16)
        cast.encode(x, cast.FORMATS[number.name], memory[offset : x.size + offset])
        np.testing.assert_array_equal(memory[offset : x.size + offset], x.astype(number).view(np.uint16))
        assert not memory[:offset].any()
        assert not memory[x.size + offset :].any()


@by_format
@by_dtype
@by_numel
def test_with_feedback_nothing_is_lost(number: "np.dtype[Any]", dtype: Any, numel: int) -> None:
    rng = np.random.default_rng(numel)
    residual, codes = np.zeros(numel, dtype), np.zeros(numel, np.uint16)
    given_in, told = np.zeros(numel), np.zeros(numel)
    for _ in range(5):
        x = rng.standard_normal(numel).astype(dtype)
        kept, corrected = x.copy(), x + residual
        cast.encode_with_feedback(x, residual, cast.FORMATS[number.name], codes)
        np.testing.assert_array_equal(codes, encoded(corrected, number))
        np.testing.assert_array_equal(residual, corrected - decoded(codes, number, dtype))
        np.testing.assert_array_equal(x, kept)
        given_in, told = given_in + x, told + decoded(codes, number, np.float64)
    np.testing.assert_allclose(told + residual, given_in, rtol=0, atol=40 * np.finfo(dtype).eps)


@by_format
@by_dtype
def test_what_is_not_finite_is_told_once(number: "np.dtype[Any]", dtype: Any) -> None:
    x, residual = np.array([np.nan, np.inf, -np.inf, 3.4e38, 1.0], dtype), np.full(5, 0.001, dtype)
    codes = np.zeros(5, np.uint16)
    with np.errstate(all="ignore"):
        cast.encode_with_feedback(x, residual, cast.FORMATS[number.name], codes)
    told = decoded(codes, number, np.float64)
    np.testing.assert_array_equal(told[:4], [np.nan, np.inf, -np.inf, np.inf])
    np.testing.assert_array_equal(residual[:4], 0)
    assert told[4] + residual[4] == pytest.approx(1.001, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), max_size=40), st.sampled_from(FORMATS))
def test_the_error_is_at_most_half_a_unit(values: list[float], number: "np.dtype[Any]") -> None:
    x = np.array(values, np.float32)
    found = decoded(encoded(x, number), number, np.float64)
    np.testing.assert_array_equal(found, rounded(x, number))
    kept = np.isfinite(found)
    limits = ml_dtypes.finfo(number)
    half_unit = np.maximum(np.abs(x[kept]).astype(np.float64) * float(limits.eps), float(limits.smallest_subnormal)) / 2
    assert (np.abs(found[kept] - x[kept]) <= half_unit).all()


def test_the_same_tests_pass_without_the_compiler() -> None:
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("this is the run without the compiler")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert "3 skipped" in run.stdout
