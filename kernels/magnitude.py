"""Floats by magnitude: the bits of |x|, read as an integer, are ordered as |x| is, with NaN above infinity."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

# Above the magnitude of anything, NaN too.
ABOVE_ALL = np.int64(2**63 - 1)


def magnitude(value: Any) -> int:
    """Return the bits of |value| as an int64; `value` is one float32 or float64."""
    return int(abs(value).view(f"i{value.itemsize}"))


@overload(magnitude)
def _compiled(value):  # type: ignore[no-untyped-def]
    if value == types.float32:
        return lambda value: np.int64(np.float32(abs(value)).view(np.int32))
    return lambda value: np.float64(abs(value)).view(np.int64)
