"""Pairs of vectors, against NumPy; what they combine to is tested in test_combine.py and in tests/collectives."""

import ml_dtypes
import numpy as np
import pytest

from hpcvol.kernels.combine import MAX, MIN, PRODUCT, SUM
from hpcvol.kernels.pairs import PAIR

pytestmark = pytest.mark.without_mpi

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), **{name: np.dtype(name) for name in PAIR if name != "bfloat16"}}
UFUNCS = {SUM: np.add, MIN: np.minimum, MAX: np.maximum, PRODUCT: np.multiply}


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("op", UFUNCS)
def test_two_are_combined_into_a_third_or_in_place(name: str, op: int) -> None:
    random = np.random.default_rng(0)
    for numel in (0, 1, 31, 1000):
        a, b = (random.integers(-9, 9, numel).astype(DTYPES[name]) for _ in range(2))
        expected = UFUNCS[op](a.astype(np.float64), b.astype(np.float64))
        for out in (np.zeros_like(a), b):
            PAIR[name](op, a.ctypes.data, b.ctypes.data, out.ctypes.data, out.nbytes)
            np.testing.assert_array_equal(out.astype(np.float64), expected)
