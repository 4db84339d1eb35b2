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

# Elements that are rounded under one exponent.
BLOCK_NUMEL = 256
GRAIN_NUMEL = 4096  # what tensors are shared out by

# Magnitudes that are no exponents, ordered as they win.
ZERO = np.int32(-(2**20))
INFINITE = np.int32(2**20)
NOT_A_NUMBER = np.int32(2**20 + 1)


@njit(nogil=True, cache=True)
def _magnitude(value):  # type: ignore[no-untyped-def]
    bits = np.float64(value).view(np.int64) & _SIGN_MASK_64
    exponent = bits >> np.int64(52)
    if exponent == 2047:
        return INFINITE if bits << np.int64(12) == 0 else NOT_A_NUMBER
    return ZERO if bits == 0 else np.int32(exponent - 1022)


@njit(nogil=True, cache=True)
def _accumulate_float32(values, bits, scales, weight, total, magnitudes):  # type: ignore[no-untyped-def]
    # Unsigned, because an index that may be negative keeps the loop from being vectorised.
    numel, block_numel = np.uint64(values.size), np.uint64(BLOCK_NUMEL)
    for block in range(scales.size):
        start = np.uint64(block) * block_numel
        scale = scales[block] * weight
        largest = np.int32(0)
        for i in range(start, min(start + block_numel, numel)):
            scaled = np.float64(values[i]) * scale
            high = scaled + _ROUND_HIGH
            low = (scaled - (high - _ROUND_HIGH)) + _ROUND
            high_part = np.float64(high).view(np.int64) - _ROUND_HIGH_BITS
            total[i] += (high_part << np.int64(32)) + (np.float64(low).view(np.int64) - _ROUND_BITS)
            largest = max(largest, bits[i] & _SIGN_MASK_32)
        magnitudes[block] = max(magnitudes[block], _magnitude(np.float64(np.int32(largest).view(np.float32)) * weight))


@njit(nogil=True, cache=True)
def _accumulate_float64(values, bits, scales, weight, total, magnitudes):  # type: ignore[no-untyped-def]
    # Unsigned, because an index that may be negative keeps the loop from being vectorised.
    numel, block_numel = np.uint64(values.size), np.uint64(BLOCK_NUMEL)
    for block in range(scales.size):
        start = np.uint64(block) * block_numel
        scale = scales[block] * weight
        largest = np.int64(0)
        for i in range(start, min(start + block_numel, numel)):
            scaled = values[i] * scale
            high = scaled + _ROUND_HIGH
            low = (scaled - (high - _ROUND_HIGH)) + _ROUND
            high_part = np.float64(high).view(np.int64) - _ROUND_HIGH_BITS
            total[i] += (high_part << np.int64(32)) + (np.float64(low).view(np.int64) - _ROUND_BITS)
            largest = max(largest, bits[i] & _SIGN_MASK_64)
        magnitudes[block] = max(magnitudes[block], _magnitude(np.int64(largest).view(np.float64) * weight))


def accumulate(
    values: NDArray[np.floating],
    scales: NDArray[np.float64],
    weight: float,
    total: NDArray[np.int64],
    magnitudes: NDArray[np.int32],
) -> None:
    """Add `rint(values * weight * scale)` to `total`, each block under a scale of its own; note magnitudes.

    Rounding is to the nearest integer, ties to even. The sums are right while |values * weight * scale| < 2**62 and
    `total` does not overflow; whoever calls tests the magnitudes against its own limit and throws `total` away where
    they fail.

    Args:
        values: float32[n] or float64[n], contiguous; left alone.
        scales: float64[ceil(n / BLOCK_NUMEL)], powers of two.
        weight: an integer from 1 to 2**29 - 1, so that float32 products are exact.
        total: int64[n], changed in place.
        magnitudes: int32, as long as `scales`; raised to the smallest m with |weight * value| < 2**m for all values of
            the block: `ZERO` where all are 0, `INFINITE` or `NOT_A_NUMBER` where one is (the latter wins).
    """
    if values.dtype == np.float32:
        _accumulate_float32(values, values.view(np.int32), scales, weight, total, magnitudes)
    else:
        _accumulate_float64(values, values.view(np.int64), scales, weight, total, magnitudes)


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
def means(total, starts, numels, scales, weight, out):  # type: ignore[no-untyped-def]
    """Write the `mean` of many blocks, each under a scale of its own, to `out`; between them it is left alone.

    Args:
        total: int64[n], left alone.
        starts: int64[blocks], the first element of each.
        numels: int64[blocks], elements of each.
        scales: float64[blocks], the powers of two under which each was accumulated.
        weight: as for `mean`.
        out: float32[n] or float64[n], changed in place.
    """
    for block in range(starts.size):
        part = slice(starts[block], starts[block] + numels[block])
        mean(total[part], scales[block], weight, out[part])


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


@njit(nogil=True, cache=True)
def sums_of_squares(values, out):  # type: ignore[no-untyped-def]
    """Write `sum_of_squares` of every GRAIN_NUMEL neighbours.

    Args:
        values: float32[n] or float64[n], contiguous.
        out: float64[ceil(n / GRAIN_NUMEL)].
    """
    for i in range(out.size):
        out[i] = sum_of_squares(values[i * GRAIN_NUMEL : (i + 1) * GRAIN_NUMEL])
