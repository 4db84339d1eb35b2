"""The one call for combining vectors, whatever the algorithm."""

from typing import Literal, TypeAlias, get_args

import numpy as np

from hpcvol.collectives import library, ring
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector, copy_from_root

Algorithm: TypeAlias = Literal["auto", "ring", "library"]

DTYPES = (np.float32, np.float64, np.int32, np.int64)


def allreduce(group: Group, vector: Vector, op: Op = "sum", algorithm: Algorithm = "auto") -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    All ranks end with the same bits (NaN payloads excepted), whatever the algorithm. Sums of floats depend on the
    number of ranks and on the algorithm in their last bits; integers wrap around.

    Args:
        group: all of its ranks call this with the same `op`, `algorithm`, length and dtype.
        vector: float32, float64, int32 or int64 of any length, contiguous, 1-D. Changed in place.
        op: "sum", "min" or "max". What min and max make of NaN is up to the algorithm.
        algorithm: "ring", "library" (the MPI library's own), or "auto", which picks.

    Raises:
        TypeError: not a NumPy array, or another dtype.
        ValueError: not 1-D, contiguous and writable; unknown op or algorithm.
    """
    _check(vector)
    if op not in get_args(Op):
        raise ValueError(f"unknown op {op!r}: expected one of {', '.join(get_args(Op))}")
    if algorithm == "ring":
        ring.allreduce(group, vector, op)
    elif algorithm in ("library", "auto"):
        library.allreduce(group, vector, op)
    else:
        raise ValueError(f"unknown algorithm {algorithm!r}: expected one of {', '.join(get_args(Algorithm))}")


def broadcast(group: Group, vector: Vector, root: int = 0) -> None:
    """Replace `vector` by that of rank `root` on all ranks of `group`. Collective, in place.

    Args:
        group: all of its ranks call this with the same `root`, length and dtype.
        vector: as for `allreduce`.
        root: the rank whose values all get.

    Raises:
        TypeError, ValueError: as for `allreduce`; or there is no rank `root`.
    """
    _check(vector)
    if not 0 <= root < group.size:
        raise ValueError(f"no rank {root} to broadcast from: the group has ranks 0 to {group.size - 1}")
    copy_from_root(group, vector, root)


def _check(vector: Vector) -> None:
    if not isinstance(vector, np.ndarray):
        raise TypeError(f"expected a NumPy array, found {type(vector).__name__}: pass a view, such as tensor.numpy()")
    if vector.dtype.type not in DTYPES or not vector.dtype.isnative:
        names = ", ".join(np.dtype(dtype).name for dtype in DTYPES)
        raise TypeError(f"cannot combine {vector.dtype}: expected one of {names} in native byte order")
    if vector.ndim != 1:
        raise ValueError(f"expected a vector, found shape {vector.shape}: pass array.reshape(-1) of a contiguous array")
    if not vector.flags.c_contiguous:
        raise ValueError(
            f"the vector is not contiguous (strides of {vector.strides[0]} bytes for elements of {vector.itemsize}): "
            "results are written in place, so copy it with np.ascontiguousarray and copy back"
        )
    if not vector.flags.writeable:
        raise ValueError("the vector is read-only: results are written in place, so pass a writable one")
