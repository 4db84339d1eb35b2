"""A call on the board: from the moment a rank enters a collective until it leaves it."""

from collections.abc import Iterator
from contextlib import contextmanager

from hpcvol.comm.calls import Call
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Vector
from hpcvol.errors import CommError


@contextmanager
def calling(
    group: Group,
    name: str,
    vector: Vector | None = None,
    numel: int | None = None,
    op: str = "",
    algorithm: str = "auto",
) -> Iterator[None]:
    """Number the call that the body makes, and show it to the members of the node. If it fails the call is given up.

    Args:
        group: whose ranks all make the call.
        name: one of `hpcvol.comm.calls.NAMES`.
        vector: gives the dtype, and the length where `numel` is None.
        numel: length on all ranks; 0 where it may differ between them.
        op: operation.
        algorithm: what was asked for.
    """
    if group.calls.abandoned:
        raise CommError(f"{name} over a group in which an earlier call was given up after an error: end the run")
    length = numel if numel is not None else 0 if vector is None else vector.size
    group.calls.begin(Call.of(name, None if vector is None else vector.dtype, length, op, algorithm))
    try:
        yield
    except BaseException:
        group.calls.abandoned = True
        raise
    group.calls.end()
