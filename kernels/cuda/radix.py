"""The k-th largest magnitude by radix selection, as in `hpcvol.kernels.radix`: eleven bits at a time, from the highest.

Each block of threads counts digits in its own memory, and adds its counts to those of all; a block takes from them the
digit that the k-th largest has. All are integers, so that it is the same in whatever order they are added; and nothing
comes back to the host on the way.
"""

from typing import Any

import numpy as np
from numba import cuda

from hpcvol.kernels.cuda.launch import THREADS, blocks_for, zeros
from hpcvol.kernels.cuda.magnitude import magnitude
from hpcvol.kernels.cuda.prefix_sums import sums_before

_DIGIT_BITS = 11
_DIGITS = 1 << _DIGIT_BITS
_RUN = _DIGITS // THREADS  # digits that one thread adds up
_NUMEL = 64  # elements that a thread looks at, so that adding the counts of a block is the smaller part


@cuda.jit
def _count_digits(values, decided, shift, width, counts):  # type: ignore[no-untyped-def]
    """Count the values by the digit at `shift`, of those whose higher bits are what is decided."""
    bins = cuda.shared.array(_DIGITS, np.int32)
    for digit in range(cuda.threadIdx.x, _DIGITS, THREADS):
        bins[digit] = 0
    cuda.syncthreads()
    higher, mask = decided[0], (1 << width) - 1
    for i in range(cuda.grid(1), values.size, cuda.gridsize(1)):
        bits = magnitude(values[i]) >> shift
        if bits >> width == higher:
            cuda.atomic.add(bins, bits & mask, 1)
    cuda.syncthreads()
    for digit in range(cuda.threadIdx.x, _DIGITS, THREADS):
        if bins[digit] > 0:
            cuda.atomic.add(counts, digit, bins[digit])


@cuda.jit
def _decide(counts, width, decided):  # type: ignore[no-untyped-def]
    """Take the digit where the counts from the top reach k, and clear the counts. For one block of threads."""
    k, higher = decided[1], decided[0]
    top = _DIGITS - 1 - cuda.threadIdx.x * _RUN
    own = np.int64(0)
    for digit in range(top, top - _RUN, -1):
        own += counts[digit]
    above = sums_before(own)[0]
    if above < k and k <= above + own:
        digit = top
        while above + counts[digit] < k:
            above += counts[digit]
            digit -= 1
        decided[0] = higher << width | digit
        decided[1] = k - above
    for digit in range(top, top - _RUN, -1):
        counts[digit] = 0


def kth_magnitude(values: Any, k: int) -> Any:
    """Return the magnitude of the k-th largest value, and how many of that magnitude the k largest hold.

    Args:
        values: float32[n] or float64[n] on the device, left alone.
        k: 1 to n.

    Returns:
        int64[2] on the device.
    """
    decided = cuda.to_device(np.array([0, k], np.int64))
    counts = zeros(_DIGITS, np.int32)
    undecided = 8 * values.dtype.itemsize - 1
    while undecided > 0:
        width = min(undecided, _DIGIT_BITS)
        undecided -= width
        _count_digits[blocks_for(values.size // _NUMEL), THREADS](values, decided, undecided, width, counts)
        _decide[1, THREADS](counts, width, decided)
    return decided
