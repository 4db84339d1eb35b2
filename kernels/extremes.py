"""Floats as integers of the same order, so that whoever can compare integers can take minimum or maximum of floats.

Floats of one sign are ordered as their bits are, read as integers; flipping all but the sign of the negative ones
orders all of them, -0 below +0. All NaNs become one number, the least or the largest, so that they win. Minimum and
maximum are then associative and commutative to the bit.

In all functions bits are int16, int32 or int64[n]; `infinity` and `largest` are of the same dtype: the bits of infinity
in that format of floats, and the largest integer, which masks the sign and is the NaN that others become.
"""

from numba import njit

_SIGN_SHIFT = 63  # Numba widens what it shifts to 64 bits first


@njit(nogil=True, cache=True)
def to_integers(bits, infinity, largest, nan):  # type: ignore[no-untyped-def]
    """Replace the bits of floats by integers of the same order, and those of NaNs by `nan`, in place."""
    result = bits[: bits.size]
    for i in range(bits.size):
        p = result[i]
        result[i] = nan if (p & largest) > infinity else p ^ ((p >> _SIGN_SHIFT) & largest)


@njit(nogil=True, cache=True)
def from_integers(integers, largest, nan):  # type: ignore[no-untyped-def]
    """Undo `to_integers`, in place."""
    result = integers[: integers.size]
    for i in range(integers.size):
        p = result[i]
        result[i] = largest if p == nan else p ^ ((p >> _SIGN_SHIFT) & largest)
