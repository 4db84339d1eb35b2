"""Ascending indices as the gaps between them, in 8 or 16 bits.

A gap is how many elements lie between an index and the one before it (before the first: from the beginning). The
largest number of the type says that so many elements are passed over, and that no index follows yet: gaps of any length
can be told, and lists of indices take about as many bytes as there is information in them.
"""

from typing import Any

import numpy as np
from numba import njit


def room(count: int, numel: int, dtype: "np.dtype[Any]") -> int:
    """Return how many codes `count` ascending indices below `numel` take at most."""
    return count + numel // int(np.iinfo(dtype).max)


@njit(nogil=True, cache=True)
def encode(indices, codes):  # type: ignore[no-untyped-def]
    """Write the gaps.

    Args:
        indices: int32[k], ascending, none twice, at least 0.
        codes: uint8[at least `room`] or uint16[at least `room`], overwritten.

    Returns:
        How many codes were written.
    """
    largest = np.int64(np.iinfo(codes.dtype).max)
    end = np.uint64(0)
    previous = np.int64(-1)
    for i in range(indices.size):
        gap = indices[i] - previous - 1
        previous = np.int64(indices[i])
        while gap >= largest:
            codes[end] = largest
            end += np.uint64(1)
            gap -= largest
        codes[end] = gap
        end += np.uint64(1)
    return np.int64(end)


@njit(nogil=True, cache=True)
def decode(codes, numel, indices):  # type: ignore[no-untyped-def]
    """Write the indices that gaps stand for.

    Args:
        codes: uint8[codes] or uint16[codes].
        numel: indices are below it.
        indices: int32[k], overwritten.

    Raises:
        ValueError: these are not the gaps of k indices below `numel`.
    """
    largest = np.int64(np.iinfo(codes.dtype).max)
    found = 0
    index = np.int64(-1)
    for i in range(codes.size):
        gap = np.int64(codes[i])
        index += gap
        if gap < largest:
            index += 1
            if found == indices.size or index >= numel:
                raise ValueError("gaps do not lead to as many indices as there should be")
            indices[found] = index
            found += 1
    if found != indices.size:
        raise ValueError("gaps do not lead to as many indices as there should be")
