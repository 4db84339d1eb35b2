"""Floats as integers of the same order, against NumPy."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from hpcvol.kernels import extremes

pytestmark = pytest.mark.without_mpi

INFINITY = {"float32": 0x7F800000, "float64": 0x7FF0000000000000, "float16": 0x7C00, "bfloat16": 0x7F80}
FORMATS = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
by_format = pytest.mark.parametrize("dtype", FORMATS, ids=lambda dtype: dtype.name)


def masks(dtype: "np.dtype[Any]") -> tuple[Any, Any]:
    integer = np.dtype(f"i{dtype.itemsize}").type
    return integer(INFINITY[dtype.name]), integer(np.iinfo(integer).max)


def operands(dtype: "np.dtype[Any]") -> list[npt.NDArray[Any]]:
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 1e-4, -1e-4]).astype(dtype)
    pairs = [np.repeat(special, special.size), np.tile(special, special.size)]
    random = [np.random.default_rng(seed).standard_normal(999).astype(dtype) for seed in (1, 2)]
    return [np.concatenate(both) for both in zip(pairs, random, strict=True)]


@by_format
def test_integers_are_ordered_as_their_floats_are(dtype: "np.dtype[Any]") -> None:
    values = operands(dtype)[0]
    integer = np.dtype(f"i{dtype.itemsize}")
    infinity, largest = masks(dtype)
    for nan in (largest, integer.type(np.iinfo(integer).min)):
        numbers = values.copy()
        bits = numbers.view(integer)
        extremes.to_integers(bits, infinity, largest, nan)
        wide = values.astype(np.float64)
        is_nan = np.isnan(wide)
        np.testing.assert_array_equal(bits == nan, is_nan)
        by_bits = wide[~is_nan][np.argsort(bits[~is_nan], kind="stable")]
        np.testing.assert_array_equal(by_bits, np.sort(wide[~is_nan]))
        extremes.from_integers(bits, largest, nan)
        np.testing.assert_array_equal(bits[~is_nan], values.view(integer)[~is_nan])
        assert np.isnan(numbers[is_nan].astype(np.float64)).all()
