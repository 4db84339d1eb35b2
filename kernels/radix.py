"""The k-th largest magnitude by radix selection: exact, and of one speed whatever the values are.

From the highest bits on, eleven at a time, values are counted by their digit; the digit that the k-th largest has is
where the counts from the top reach k, and only values with that digit are looked at again.
"""

import numpy as np
from numba import njit

from hpcvol.kernels.magnitude import magnitude

_DIGIT_BITS = 11
_BLOCK = 512
_COUNTERS = 4  # beside each other, so that equal digits in a row do not wait for one another


@njit(nogil=True, cache=True)
def kth_magnitude(values, k):  # type: ignore[no-untyped-def]
    """Return the magnitude of the k-th largest value, and how many of that magnitude the k largest hold.

    Args:
        values: float32[n] or float64[n], left alone.
        k: 1 to n.

    Returns:
        int64, as of `magnitude`, and int64, at least 1.
    """
    undecided = 8 * values.itemsize - 1
    kth = 0
    while undecided > 0:
        width = min(undecided, _DIGIT_BITS)
        undecided -= width
        mask = (1 << width) - 1
        counts = _count_digits(values, undecided, mask)
        digit = mask
        while counts[digit] < k:
            k -= counts[digit]
            digit -= 1
        kth = kth << width | digit
        if counts[digit] < values.size:
            values = _with_digit(values, undecided, mask, digit, counts[digit])
    return kth, k


@njit(nogil=True, cache=True)
def _digits(values, shift, mask, out):  # type: ignore[no-untyped-def]
    digits = out[: values.size]
    for i in range(values.size):
        digits[i] = magnitude(values[i]) >> shift & mask
    return digits


@njit(nogil=True, cache=True)
def _count_digits(values, shift, mask):  # type: ignore[no-untyped-def]
    counts = np.zeros((_COUNTERS, 1 << _DIGIT_BITS), np.uint32)
    room = np.empty(_BLOCK, np.uint32)
    for start in range(0, values.size, _BLOCK):
        digits = _digits(values[start : start + _BLOCK], shift, mask, room)
        for i in range(digits.size):
            counts[i % _COUNTERS, digits[i]] += np.uint32(1)
    return counts.sum(axis=0).astype(np.int64)


@njit(nogil=True, cache=True)
def _with_digit(values, shift, mask, digit, count):  # type: ignore[no-untyped-def]
    found = np.empty(count + 1, values.dtype)  # one more: each value is written, and kept where it counts
    end = np.uint64(0)
    room = np.empty(_BLOCK, np.uint32)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        digits = _digits(block, shift, mask, room)
        for i in range(digits.size):
            found[end] = block[i]
            end += np.uint64(digits[i] == digit)
    return found[:count]
