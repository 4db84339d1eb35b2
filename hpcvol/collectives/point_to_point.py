"""From one rank to another."""

from typing import Any

import numpy as np

from hpcvol.collectives.checks import check_rank, check_vector
from hpcvol.collectives.slices import pieces
from hpcvol.comm.calls import Call
from hpcvol.comm.group import Group
from hpcvol.comm.messages import MAX_TAG, Messages
from hpcvol.comm.vectors import Vector
from hpcvol.errors import MismatchError

_PIECE_NBYTES = 1 << 24


def send(group: Group, vector: Vector, destination: int, tag: int = 0) -> None:
    """Send `vector` to rank `destination`, which calls `receive`. Returns when the vector may change.

    Args:
        group: both ranks are in it.
        vector: dtype as for `allreduce`; left alone.
        destination: another rank of the group.
        tag: 0 to 16383; vectors arrive in the order of sending among those of one tag.

    Raises:
        TypeError, ValueError: as for `allreduce`; or there is no such rank, or other rank, or tag.
        MemberError: another member died.
    """
    check_vector(vector, written=False)
    _check_peer(group, destination, "send", tag)
    header = np.array([Call.of("send", vector.dtype, vector.size).fingerprint])
    with Messages(group, tag) as messages:
        messages.send(header, destination)
        for piece in pieces(vector, _PIECE_NBYTES):
            messages.send(piece, destination)


def receive(group: Group, vector: Vector, source: int, tag: int = 0) -> None:
    """Replace `vector` by the one that rank `source` sends with the same `tag`.

    Args:
        group: both ranks are in it.
        vector: of the dtype and length that are sent.
        source: another rank of the group.
        tag: as for `send`.

    Raises:
        TypeError, ValueError: as for `send`.
        MismatchError: another dtype or length was sent; it is lost.
        MemberError: another member died.
    """
    check_vector(vector, written=True)
    _check_peer(group, source, "receive", tag)
    header = np.zeros(1, np.int64)
    with Messages(group, tag) as messages:
        messages.wait(messages.receive(header, source))
        expected, found = Call.of("send", vector.dtype, vector.size), Call.from_fingerprint(int(header[0]))
        target = vector if found == expected else np.empty(found.numel, _dtype(found.dtype))
        for piece in pieces(target, _PIECE_NBYTES):
            messages.wait(messages.receive(piece, source))
    if found != expected:
        raise MismatchError(
            f"{group.name_of_me} expects {expected.dtype}[{expected.numel}] from {group.name_of(source)}, which sent "
            f"{found.dtype}[{found.numel}]: give both the same dtype and length"
        )


def _check_peer(group: Group, rank: int, what: str, tag: int) -> None:
    check_rank(group, rank, what)
    if rank == group.rank:
        raise ValueError(f"rank {rank} cannot {what} to or from itself: copy the vector")
    if not 0 <= tag <= MAX_TAG:
        raise ValueError(f"tag {tag}: expected 0 to {MAX_TAG}")


def _dtype(name: str) -> "np.dtype[Any]":
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
