"""Conversions of half-precision numbers by their bits, against ml_dtypes and NumPy."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from hpcvol.kernels import half

pytestmark = pytest.mark.without_mpi

FORMATS = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]
by_format = pytest.mark.parametrize("dtype", FORMATS, ids=lambda dtype: dtype.name)


def kernel(what: str, dtype: "np.dtype[Any]") -> Any:
    return getattr(half, f"{what}_{dtype.name}")


def assert_same(bits: npt.NDArray[np.uint16], expected: npt.NDArray[Any]) -> None:
    """The same bits, but that any NaN is as good as another."""
    found = bits.view(expected.dtype).astype(np.float32)
    nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(bits[~nan], expected.view(np.uint16)[~nan])


@by_format
def test_every_number_widens_exactly(dtype: "np.dtype[Any]") -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = np.empty(bits.size, np.float32)
    kernel("widen", dtype)(bits, wide)
    np.testing.assert_array_equal(wide.view(np.uint32), bits.view(dtype).astype(np.float32).view(np.uint32) | 0, None)


@by_format
def test_narrowing_rounds_to_nearest_even(dtype: "np.dtype[Any]") -> None:
    near = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)
    near = near[np.isfinite(near)]
    next_up = np.nextafter(near, np.float32(np.inf))
    with np.errstate(over="ignore", invalid="ignore"):
        between = near + (np.roll(near, -1) - near) / 2  # ties
        values = np.concatenate([near, next_up, between, np.nextafter(between, np.float32(0))])
        anything = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
        values = np.concatenate([values, anything, np.float32([np.inf, -np.inf, np.nan, 0.0, -0.0, 65519.0, 65520.0])])
        bits = np.empty(values.size, np.uint16)
        kernel("narrow", dtype)(values, bits)
        assert_same(bits, values.astype(dtype))
