"""Selection of all that is as large as a threshold, as in `hpcvol.kernels.threshold`: the same elements, to the bit."""

from typing import Any

import numpy as np
from numba import cuda

from hpcvol.kernels.cuda.launch import on_device
from hpcvol.kernels.cuda.selected import correct, take
from hpcvol.kernels.cuda.sparse import check
from hpcvol.kernels.cuda.survivors import collect
from hpcvol.kernels.magnitude import magnitude


def threshold(x: Any, residual: Any, least: float, indices: Any, values: Any) -> int:
    """Select the elements with |x| >= least, NaNs among them, while there is room.

    Args:
        x: float32[n] or float64[n], n below 2^31, left alone.
        residual: of the dtype of `x`, [n], added to `x`, and then what was not selected, 0 elsewhere; or None.
        least: at least 0; rounded to the dtype of `x`.
        indices: int32[room], room at most n; overwritten: ascending, and of no use behind the last one selected.
        values: of the dtype of `x`, [room]; likewise.

    Returns:
        How many were selected. Where that is all the room there is, the first ones were: the rest is in the residual.

    Raises:
        ValueError: lengths do not fit, or the threshold is negative or no number; nothing was changed.
    """
    x, indices, values = on_device(x), on_device(indices), on_device(values)
    residual = None if residual is None else on_device(residual)
    check(x, residual, indices, values)
    if not least >= 0:
        raise ValueError("a threshold is a number, and at least 0")
    source = correct(x, residual)
    if not indices.size:
        return 0
    bounds = cuda.to_device(np.array([magnitude(np.dtype(x.dtype).type(least)) - 1, 0], np.int64))
    found = min(int(collect(source, bounds, indices).copy_to_host()[0]) >> 32, int(indices.size))
    if found:
        take(x, residual, indices[:found], values[:found])
    return found
