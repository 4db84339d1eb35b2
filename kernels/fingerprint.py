"""Linear fingerprints of vectors of integers: that of a sum is the sum of those of its terms.

F(x) = Σ r_i · x_i mod 2^64, where r_i are the numbers, made odd, of the generator SplitMix64 that begins at a key:
Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014. Two vectors that differ in one
element never have the same fingerprint; others whose difference is odd somewhere have it for one key of 2^63, one bit
more for each power of two that divides the whole difference.
"""

import numpy as np
from numba import njit

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_ODD = np.uint64(1)


@njit(nogil=True, cache=True)
def fingerprint(values, first, key):  # type: ignore[no-untyped-def]
    """Return F of `values`, which lie from element `first` on in a longer vector that is zero elsewhere.

    Args:
        values: int64[n], contiguous, left alone.
        first: uint64.
        key: uint64.

    Returns:
        uint64.
    """
    state = key + first * _STEP
    total = np.uint64(0)
    for i in range(values.size):
        state += _STEP
        mixed = state
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
        mixed = mixed ^ (mixed >> np.uint64(31))
        total += (mixed | _ODD) * np.uint64(values[i])
    return total
