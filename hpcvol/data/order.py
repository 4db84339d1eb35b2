"""The order in which an epoch visits the samples."""

import numpy as np
from numpy.typing import NDArray

from hpcvol.errors import DataError
from hpcvol.kernels.permutation import permute


def order(num_samples: int, seed: int, epoch: int, position: int, count: int) -> NDArray[np.int64]:
    """Return which samples stand at positions `position` .. `position + count - 1` of an epoch.

    A pure function; each pair (seed, epoch) has a pseudo-random permutation of 0..num_samples-1 of its own, any part of
    which is computed without the rest: O(count) time and memory, whatever num_samples is.

        >>> order(5, seed=0, epoch=0, position=0, count=5)
        array([4, 2, 1, 3, 0])
        >>> order(5, seed=0, epoch=0, position=3, count=2)
        array([3, 0])

    Args:
        num_samples: size of the epoch, at least 1.
        seed: 0 to 2^63 - 1.
        epoch: 0 to 2^63 - 1.
        position: first position.
        count: how many.

    Returns:
        int64[count].

    Raises:
        DataError: an argument out of range, or positions beyond the end of the epoch.

    References:
        Luby and Rackoff 1988 (Feistel networks); Black and Rogaway 2002 (cycle walking); see kernels/permutation.py.
    """
    if num_samples < 1:
        raise DataError(f"There is no order of {num_samples} samples; at least one is needed. Is the split empty?")
    if position < 0 or count < 0 or position + count > num_samples:
        raise DataError(
            f"Positions {position} to {position + count - 1} are not all within an epoch of {num_samples} samples; "
            "the next positions belong to the next epoch."
        )
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 1 << 63:
            raise DataError(f"{name} is {value}, expected 0 to 2^63 - 1.")
    out = np.empty(count, np.int64)
    permute(num_samples, seed, epoch, position, out)
    return out
