"""A call on the board: from the moment a rank enters a collective until it leaves it."""

from collections.abc import Iterator
from contextlib import contextmanager

from hpcvol.comm.calls import Call
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Vector


@contextmanager
def calling(group: Group, name: str, vector: Vector | None = None, numel: int | None = None, op: str = "") -> Iterator[None]:
    """Number the call that the body makes, and show it to the members of the node.

    Args:
        group: whose ranks all make the call.
        name: one of `hpcvol.comm.calls.NAMES`.
        vector: gives the dtype, and the length where `numel` is None.
        numel: length on all ranks; 0 where it may differ between them.
        op: operation.
    """
    length = numel if numel is not None else 0 if vector is None else vector.size
    group.calls.begin(Call.of(name, None if vector is None else vector.dtype, length, op))
    try:
        yield
    finally:
        group.calls.end()
