"""What a vector has to be before ranks exchange it; refused by name where it is not."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, get_args

import numpy as np

from hpcvol.collectives.slices import Bounds, bounds_of, even_bounds
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector
from hpcvol.errors import MismatchError

DTYPE_NAMES = ("float32", "float64", "float16", "bfloat16", "int32", "int64")


def check_vector(vector: Vector, *, written: bool) -> None:
    """Raise where `vector` cannot be exchanged.

    Args:
        vector: float32, float64, float16, bfloat16 (of ml_dtypes), int32 or int64, 1-D, contiguous.
        written: whether it is to hold a result.

    Raises:
        TypeError: not a NumPy array, or another dtype.
        ValueError: not 1-D, contiguous and, where `written`, writable.
    """
    if not isinstance(vector, np.ndarray):
        raise TypeError(f"expected a NumPy array, found {type(vector).__name__}: pass a view, such as tensor.numpy()")
    if not _is_known(vector.dtype):
        raise TypeError(f"cannot combine {vector.dtype}: expected one of {', '.join(DTYPE_NAMES)} in native byte order")
    if vector.ndim != 1:
        raise ValueError(f"expected a vector, found shape {vector.shape}: pass array.reshape(-1) of a contiguous array")
    if not vector.flags.c_contiguous:
        raise ValueError(
            f"the vector is not contiguous (strides of {vector.strides[0]} bytes for elements of {vector.itemsize}): "
            "copy it with np.ascontiguousarray, and a result back"
        )
    if written and not vector.flags.writeable:
        raise ValueError("the vector is read-only: results are written to it, so pass a writable one")


def check_op(op: str, dtype: "np.dtype[Any]") -> None:
    """Raise ValueError where `op` is unknown, or is a mean of integers."""
    if op not in get_args(Op):
        raise ValueError(f"unknown op {op!r}: expected one of {', '.join(get_args(Op))}")
    if op == "mean" and dtype.kind == "i":
        raise ValueError(f"a mean of {dtype} is no integer: take the sum, and divide it as you want it rounded")


def check_pair(vector: Vector, out: Vector) -> None:
    """Check an input and the vector that takes the result; both as `check_vector`, and of one dtype."""
    check_vector(vector, written=False)
    check_vector(out, written=True)
    if vector.dtype != out.dtype:
        raise TypeError(f"input of {vector.dtype} and output of {out.dtype}: expected one dtype")


def check_numel(what: str, found: int, expected: int) -> None:
    """Raise ValueError where a vector is not as long as counts and ranks ask for."""
    if found != expected:
        raise ValueError(f"{what} has {found} elements, and {expected} are expected")


def check_root(group: Group, root: int) -> None:
    """Raise ValueError where `group` has no rank `root`."""
    check_rank(group, root, "root")


def check_rank(group: Group, rank: int, what: str) -> None:
    """Raise ValueError where `group` has no such rank."""
    if not 0 <= rank < group.size:
        raise ValueError(f"no rank {rank} for the {what}: the group has ranks 0 to {group.size - 1}")


def is_same(vector: Vector, out: Vector, place: str) -> bool:
    """Return whether two vectors are the same memory (in place); False where they share none.

    Args:
        vector: one vector.
        out: the other.
        place: what they have to be for being in place, for the message.

    Raises:
        ValueError: they overlap otherwise, so that what is written would destroy what is still to be read.
    """
    first, second = _address(vector), _address(out)
    if first == second and vector.nbytes == out.nbytes:
        return True
    if vector.nbytes and out.nbytes and first < second + out.nbytes and second < first + vector.nbytes:
        shared = min(first + vector.nbytes, second + out.nbytes) - max(first, second)
        raise ValueError(
            f"input and output overlap by {shared} bytes: expected apart from each other, or {place} (in place)"
        )
    return False


def is_slice(piece: Vector, whole: Vector, start: int, place: str) -> bool:
    """Return whether `piece` is the memory of `whole` from element `start` on; False where they share none.

    Raises:
        ValueError: as for `is_same`.
    """
    return _address(piece) == _address(whole) + start * whole.itemsize or is_same(piece, whole, place)


def _address(vector: Vector) -> int:
    return int(vector.__array_interface__["data"][0])


def agreed_bounds(group: Group, counts: Sequence[int] | None, numel: int, what: str) -> Bounds:
    """Return the slice of each rank. Collective where `counts` are given: all members have to give the same.

    Args:
        group: of as many ranks as there are counts.
        counts: elements for each rank; None shares `numel` out evenly.
        numel: of the whole vector.
        what: the vector, for messages.

    Raises:
        ValueError: the counts are not of this group and vector; or `numel` cannot be shared out evenly.
        MismatchError: members gave different counts.
    """
    if counts is None:
        if numel % group.size:
            raise ValueError(
                f"{what} has {numel} elements, which {group.size} ranks cannot share out evenly: give counts"
            )
        return even_bounds(numel, group.size)
    mine = check_counts(group, counts, "counts")
    check_numel(what, numel, sum(mine))
    return bounds_of(agreed_counts(group, mine))


def agreed_counts(group: Group, counts: Sequence[int]) -> list[int]:
    """Return `counts`, one a rank, which all members have to give alike. Collective: one small gather.

    Raises:
        ValueError: they are not one for each rank, zero or more.
        MismatchError: members gave different counts.
    """
    mine = check_counts(group, counts, "counts")
    given = group.gather_objects(mine)
    for rank, theirs in enumerate(given):
        if theirs != given[0]:
            raise MismatchError(
                f"members disagree about counts: {group.name_of(0)} gives {given[0]}, {group.name_of(rank)} {theirs}",
                everywhere=True,
            )
    return mine


def check_counts(group: Group, counts: Sequence[int], what: str) -> list[int]:
    """Return `counts` as a list; raise ValueError where they are not one for each rank, zero or more."""
    listed = [int(count) for count in counts]
    if len(listed) != group.size or any(count < 0 for count in listed):
        raise ValueError(f"{what} = {listed}: expected {group.size} numbers, one a rank, zero or more")
    return listed


@lru_cache
def _is_known(dtype: "np.dtype[Any]") -> bool:
    return dtype.name in DTYPE_NAMES and dtype.isnative
