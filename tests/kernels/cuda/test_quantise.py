"""Quantisers: the bytes that the CPU's kernels write."""

from typing import Any

import numpy as np
import pytest
from numba import cuda

from hpcvol.kernels import quantise as on_cpu
from hpcvol.kernels.cuda import quantise
from hpcvol.kernels.quantise import Quantiser

pytestmark = [pytest.mark.without_mpi, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

QUANTISERS = {
    "int8": quantise.INT8,
    "int4": quantise.INT4,
    "ternary": quantise.TERNARY,
    "sign": quantise.SIGN_MEAN,
    "fp8": quantise.FLOAT8,
    "qsgd:100": quantise.qsgd(100),
}
by_quantiser = pytest.mark.parametrize("quantiser", QUANTISERS.values(), ids=QUANTISERS)
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def negative(values: Any) -> Any:
    return np.signbit(np.where(np.isnan(values), 0.0, values))  # zeros have a sign that counts, NaNs none


def check(quantiser: Quantiser, x: Any, residual: Any, seed: int) -> None:
    """Encode with feedback, and add up what was encoded: on either side, all arrays have to be the same."""
    codes = np.full(quantise.code_nbytes(x.size, quantiser), 0xA5, np.uint8)
    scales = np.full(quantise.num_blocks(x.size, quantiser), 7, x.dtype)
    arrays = [x, residual, codes, scales, np.ones_like(x)]
    found = [cuda.to_device(array) for array in arrays]
    for kernels, (x, residual, codes, scales, out) in ((on_cpu, arrays), (quantise, found)):
        with np.errstate(all="ignore"):
            kernels.encode_with_feedback(x, residual, quantiser, seed, codes, scales)
            kernels.accumulate(codes, scales, quantiser, out)
    for one, other in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(one.copy_to_host(), other)
        np.testing.assert_array_equal(negative(one.copy_to_host()), negative(other))


@by_quantiser
@pytest.mark.parametrize(("numel", "dtype"), [(1, np.float32), (3 * 48 + 13, np.float32), (2 * 48 + 5, np.float64)])
def test_feedback_is_the_same(quantiser: Quantiser, numel: int, dtype: Any) -> None:
    x, residual = np.random.default_rng(numel).standard_normal((2, numel)).astype(dtype)
    check(quantiser._replace(block_numel=48), x, residual, 2**63 - 1)


@by_quantiser
def test_without_feedback(quantiser: Quantiser) -> None:
    x = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    x[::50] = -0.0
    codes, scales = np.zeros(quantise.code_nbytes(300, quantiser), np.uint8), np.zeros(2, np.float32)
    found = [cuda.to_device(array) for array in (x, codes, scales)]
    on_cpu.encode(x, quantiser, 5, codes, scales)
    quantise.encode(found[0], quantiser, 5, *found[1:])
    for one, other in zip(found, (x, codes, scales), strict=True):
        np.testing.assert_array_equal(one.copy_to_host(), other)


@by_quantiser
def test_blocks_of_all_sizes_of_numbers(quantiser: Quantiser) -> None:
    """What is large, tiny, zero, or no number at all stays in its block."""
    x = np.random.default_rng(1).standard_normal((9, 16)).astype(np.float32)
    x *= np.array([1, 1e38, 1e-38, 1e-45, 0, 1, 1, 1, -1], np.float32)[:, None]
    x[4, ::2], x[5, 3], x[6, 4], x[7] = -0.0, np.nan, -np.inf, 3.4e38
    check(quantiser._replace(block_numel=16), x.reshape(-1), np.zeros(9 * 16, np.float32), 5)


def test_nothing_is_encoded_of_nothing() -> None:
    empty = np.zeros(0, np.float32)
    check(quantise.INT8, empty, empty.copy(), 5)


@by_dtype
def test_halves_go_to_even(dtype: Any) -> None:
    x = np.concatenate([np.arange(-126.5, 127.5), [127.0, -0.2, 0.2]]).astype(dtype)
    check(quantise.INT8, x, np.zeros_like(x), 5)


def test_integers_on_either_side_of_eight_bits() -> None:
    """Numbers between those of fp8, and its subnormal ones."""
    x = np.concatenate([[448], np.arange(1, 250) * 2.0**-11, np.arange(1, 400, 3) * 1.0625]).astype(np.float32)
    check(quantise.FLOAT8._replace(block_numel=16 * 24), x, np.zeros_like(x), 5)
