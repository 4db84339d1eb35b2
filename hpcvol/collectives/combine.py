"""What an operation does to two vectors, for each dtype, and how a mean is made of a sum.

NaN: a sum or product is NaN where a term is, or where infinities say so; which NaN is not told. Minimum and maximum are
NaN where any rank has one, always the same NaN, and -0 is below +0: they do not depend on order in any bit. Half types
are combined in float32 and rounded once at each combination. Integers wrap around.
"""

from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from hpcvol.collectives.slices import pieces
from hpcvol.comm.vectors import Op, Vector


class Combine(Protocol):
    """Writes what two vectors combine to to `out`, which may be one of them."""

    def __call__(self, a: Vector, b: Vector, /, *, out: Vector) -> object:
        """Combine."""


_NUMPY: dict[Op, np.ufunc] = {
    "sum": np.add,
    "mean": np.add,
    "product": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}
_INFINITY = {"float32": 0x7F800000, "float64": 0x7FF0000000000000, "float16": 0x7C00, "bfloat16": 0x7F80}
HALF = ("float16", "bfloat16")


@lru_cache
def combiner(op: Op, dtype: "np.dtype[Any]") -> Combine:
    """Return the function that combines two vectors of `dtype`. A mean is combined as a sum and divided at the end."""
    if dtype.kind == "i" or (op not in ("min", "max") and dtype.name not in HALF):
        return _NUMPY[op]
    return _compiled(op, dtype)


def finish(op: Op, vector: Vector, num_terms: int) -> None:
    """Turn a sum of `num_terms` terms into their mean, in place, where `op` is "mean"."""
    if op != "mean" or not vector.size:
        return
    if vector.dtype.name in HALF:
        for piece in pieces(vector):
            wide = widened(piece)
            wide /= num_terms
            narrow(wide, piece)
    else:
        np.divide(vector, num_terms, out=vector)


def widened(vector: Vector) -> Vector:
    """Return a vector of a half type in float32."""
    from hpcvol.kernels import cast

    wide = np.empty(vector.size, np.float32)
    cast.decode(vector.view(np.uint16), cast.FORMATS[vector.dtype.name], wide)
    return wide


def narrow(wide: Vector, out: Vector) -> None:
    """Write a float32 vector, rounded, to one of a half type."""
    from hpcvol.kernels import cast

    cast.encode(wide, cast.FORMATS[out.dtype.name], out.view(np.uint16))


class OrderedIntegers:
    """Floats as integers of the same order, so that an MPI library can take minimum or maximum of them.

    Args:
        op: "min" or "max": in it NaN wins.
        dtype: of the floats.
    """

    def __init__(self, op: Op, dtype: "np.dtype[Any]") -> None:
        self._dtype = np.dtype(f"i{dtype.itemsize}")
        self._infinity, self._largest = _masks(dtype)
        self._nan = self._largest if op == "max" else self._dtype.type(np.iinfo(self._dtype).min)

    def encode(self, vector: Vector) -> Vector:
        """Replace floats by integers, in place; return them as an integer vector of the same memory."""
        from hpcvol.kernels import extremes

        integers = vector.view(self._dtype)
        extremes.to_integers(integers, self._infinity, self._largest, self._nan)
        return integers

    def decode(self, integers: Vector) -> None:
        """Undo `encode`."""
        from hpcvol.kernels import extremes

        extremes.from_integers(integers, self._largest, self._nan)


def _compiled(op: Op, dtype: "np.dtype[Any]") -> Combine:
    from hpcvol.kernels.combine import MAX, MIN, PRODUCT, SUM
    from hpcvol.kernels.pairs import PAIR

    kernel = PAIR[dtype.name]
    code = {"sum": SUM, "mean": SUM, "min": MIN, "max": MAX, "product": PRODUCT}[op]

    def combine(a: Vector, b: Vector, /, *, out: Vector) -> None:
        kernel(code, a.ctypes.data, b.ctypes.data, out.ctypes.data, out.nbytes)

    return combine


def _masks(dtype: "np.dtype[Any]") -> tuple[np.signedinteger[Any], np.signedinteger[Any]]:
    integer = np.dtype(f"i{dtype.itemsize}").type
    return integer(_INFINITY[dtype.name]), integer(np.iinfo(integer).max)
