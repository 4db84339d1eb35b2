"""Selection of all that is as large as a threshold."""

from numba import njit

from hpcvol.kernels.magnitude import magnitude
from hpcvol.kernels.sparse import check
from hpcvol.kernels.survivors import collect


@njit(nogil=True, cache=True)
def threshold(x, residual, least, indices, values):  # type: ignore[no-untyped-def]
    """Select the elements with |x| >= least, NaNs among them, while there is room.

    Args:
        x: float32[n] or float64[n], contiguous, n below 2^31, left alone.
        residual: of the dtype of `x`, [n], added to `x`, and then what was not selected, 0 elsewhere; or None.
        least: at least 0; rounded to the dtype of `x`.
        indices: int32[room], room at most n; overwritten: ascending, and of no use behind the last one selected.
        values: of the dtype of `x`, [room]; likewise.

    Returns:
        How many were selected. Where that is all the room there is, the first ones were: the rest is in the residual.

    Raises:
        ValueError: lengths do not fit, or the threshold is negative or no number; nothing was changed.
    """
    check(x, residual, indices, values)
    if not least >= 0:
        raise ValueError("a threshold is a number, and at least 0")
    stop, found = collect(x, residual, 0, magnitude(x.dtype.type(least)), indices, values, 0)
    if residual is not None:
        residual[stop:] += x[stop:]
    return found
