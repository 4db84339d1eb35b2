"""The exact sum: floats rounded once to 64-bit fixed point, added as integers, read back as a mean.

Integer addition is associative, so a sum of rounded terms has the same bits in any order and any partition. The idea of
rounding to a common exponent before summing is the pre-rounding of Demmel and Nguyen, "Parallel Reproducible
Summation", IEEE Transactions on Computers 64(7), 2015, section 4; a single 64-bit bin stands for their list of bins
because the exponent follows the data from step to step.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

# x + ROUND leaves round-half-even(x) in the low mantissa bits of a double, for |x| <= 2**51. Rounding in two parts,
# first to a multiple of 2**32 and then the remainder, covers every int64 with operations that vectorise on any
# instruction set (AVX2 has no conversion from double to int64).
_ROUND = 1.5 * 2.0**52
_ROUND_BITS = np.int64(np.float64(_ROUND).view(np.int64))
_ROUND_HIGH = _ROUND * 2.0**32
_ROUND_HIGH_BITS = np.int64(np.float64(_ROUND_HIGH).view(np.int64))
_SIGN_MASK_32 = np.int32(0x7FFFFFFF)
_SIGN_MASK_64 = np.int64(0x7FFFFFFFFFFFFFFF)
_LANES = 8


@njit(nogil=True, cache=True)
def _accumulate_float32(values, bits, scale, total):  # type: ignore[no-untyped-def]
    out = total[: values.size]
    largest = np.int32(0)
    for i in range(values.size):
        x = np.float64(values[i]) * scale
        high = x + _ROUND_HIGH
        low = (x - (high - _ROUND_HIGH)) + _ROUND
        high_part = np.float64(high).view(np.int64) - _ROUND_HIGH_BITS
        out[i] += (high_part << np.int64(32)) + (np.float64(low).view(np.int64) - _ROUND_BITS)
        largest = max(largest, bits[i] & _SIGN_MASK_32)
    return largest


@njit(nogil=True, cache=True)
def _accumulate_float64(values, bits, scale, total):  # type: ignore[no-untyped-def]
    out = total[: values.size]
    largest = np.int64(0)
    for i in range(values.size):
        x = values[i] * scale
        high = x + _ROUND_HIGH
        low = (x - (high - _ROUND_HIGH)) + _ROUND
        high_part = np.float64(high).view(np.int64) - _ROUND_HIGH_BITS
        out[i] += (high_part << np.int64(32)) + (np.float64(low).view(np.int64) - _ROUND_BITS)
        largest = max(largest, bits[i] & _SIGN_MASK_64)
    return largest


def accumulate(values: NDArray[np.floating], scale: float, total: NDArray[np.int64]) -> float:
    """Add `rint(values * scale)` to `total` in place and return max |values|.

    Rounding is to the nearest integer, ties to even. The sums are right while |values * scale| < 2**62 and `total` does
    not overflow; whoever calls tests the returned maximum against its own limit and throws `total` away where it fails.

    Args:
        values: float32[n] or float64[n], contiguous; left alone.
        scale: a power of two times an integer weight below 2**29, so that float32 products are exact.
        total: int64[n], changed in place.

    Returns:
        The largest magnitude: inf or nan where a value is not finite (nan wins).
    """
    if values.dtype == np.float32:
        return float(np.int32(_accumulate_float32(values, values.view(np.int32), scale, total)).view(np.float32))
    return float(np.int64(_accumulate_float64(values, values.view(np.int64), scale, total)).view(np.float64))


@njit(nogil=True, cache=True)
def mean(total, scale, weight, out):  # type: ignore[no-untyped-def]
    """Write `total / scale / weight` to `out`, computed in double and rounded once to the dtype of `out`.

    Args:
        total: int64[n], left alone.
        scale: the power of two under which `total` was accumulated.
        weight: the sum of weights, float64, > 0.
        out: float32[n] or float64[n], changed in place.
    """
    result = out[: total.size]
    inverse = 1.0 / scale
    for i in range(total.size):
        result[i] = (np.float64(total[i]) * inverse) / weight


@njit(nogil=True, cache=True)
def sum_of_squares(values):  # type: ignore[no-untyped-def]
    """Return Σ values², in double, in one fixed order: the same bits on every machine for the same values.

    Eight running sums, element i to sum i mod 8, are added pairwise at the end. Compilers keep that order, so neither
    the vector width nor the number of threads of the caller's libraries can change it.

    Args:
        values: float32[n] or float64[n], contiguous.
    """
    partial = np.zeros(_LANES, np.float64)
    whole = values.size // _LANES * _LANES
    for i in range(0, whole, _LANES):
        block = values[i : i + _LANES]
        for lane in range(_LANES):
            x = np.float64(block[lane])
            partial[lane] += x * x
    for lane in range(values.size - whole):
        x = np.float64(values[whole + lane])
        partial[lane] += x * x
    return ((partial[0] + partial[4]) + (partial[2] + partial[6])) + (
        (partial[1] + partial[5]) + (partial[3] + partial[7])
    )
