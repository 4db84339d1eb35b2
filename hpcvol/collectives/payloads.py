"""Payloads of any length between ranks: one message each way at a time, in pieces that MPI sends without asking.

A longer message waits until its receiver has been asked: over a link of 20 ms, 150 kB took 58 ms in one message and 20
ms in such pieces (Open MPI over TCP). How long a payload is stands in its first piece.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from hpcvol.codecs.codec import aligned
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Message, Messages
from hpcvol.errors import MismatchError

# Open MPI's limit over TCP is 64 KiB, its own header included, where a program has started MPI before us.
PIECE_NBYTES = 60 * 2**10
_HEADER_NBYTES = 64
_LENGTH_NBYTES = aligned(8)  # of a payload that is one of several, in front of it


class PayloadBuffer:
    """Memory for a payload, and what tells how long it is.

    Args:
        room: bytes at most.

    Attributes:
        payload: uint8[room], 64 bytes after where the memory begins.
    """

    def __init__(self, room: int) -> None:
        self._memory = np.empty(_HEADER_NBYTES + room, np.uint8)
        self._length = self._memory[:8].view(np.int64)
        self.payload: NDArray[np.uint8] = self._memory[_HEADER_NBYTES:]
        self.used = 0

    @property
    def used(self) -> int:
        """How many bytes of it are the payload."""
        return int(self._length[0])

    @used.setter
    def used(self, nbytes: int) -> None:
        self._length[0] = nbytes

    @property
    def filled(self) -> NDArray[np.uint8]:
        """The payload, a view."""
        return self.payload[: self.used]

    def send(self, messages: Messages, destination: int) -> int:
        """Start to send it; return how many bytes that are."""
        nbytes = _HEADER_NBYTES + self.used
        for start in range(0, nbytes, PIECE_NBYTES):
            messages.send(self._memory[start : min(start + PIECE_NBYTES, nbytes)], destination)
        return nbytes

    def begin_to_receive(self, messages: Messages, source: int) -> Message:
        """Start to receive one; `go_on_receiving` comes next."""
        self.used = 0
        return messages.receive_up_to(self._memory[:PIECE_NBYTES], source)

    def go_on_receiving(self, messages: Messages, first: Message) -> Iterator[Message]:
        """Wait for the first piece, and start to receive all others.

        Raises:
            MismatchError: it is longer than there is room.
        """
        messages.wait(first)
        if not first.nbytes >= _HEADER_NBYTES or not 0 <= self.used <= self.payload.size:
            raise MismatchError(
                f"rank {first.peer} sent a payload of {self.used} bytes where {self.payload.size} are the most: give "
                "all members the same codec"
            )
        nbytes = _HEADER_NBYTES + self.used
        for start in range(PIECE_NBYTES, nbytes, PIECE_NBYTES):
            yield messages.receive(self._memory[start : min(start + PIECE_NBYTES, nbytes)], first.peer)


def exchange(
    group: Group, outgoing: Iterable[tuple[int, PayloadBuffer]], incoming: Iterable[tuple[int, PayloadBuffer]]
) -> int:
    """Send payloads and receive others. Collective.

    Args:
        group: the ranks.
        outgoing: destinations, and what goes there, which may be made when it is asked for.
        incoming: sources, and where theirs comes to lie.

    Returns:
        How many bytes were sent.
    """
    sent_nbytes = 0
    with Messages(group) as messages:
        begun = [(buffer, buffer.begin_to_receive(messages, source)) for source, buffer in incoming]
        for destination, buffer in outgoing:
            sent_nbytes += buffer.send(messages, destination)
        for message in [message for buffer, first in begun for message in buffer.go_on_receiving(messages, first)]:
            messages.wait(message)
    return sent_nbytes


def frame(payloads: Iterable[NDArray[np.uint8]], memory: NDArray[np.uint8]) -> int:
    """Write payloads one behind the other, each behind its length; return how many bytes that are. Local."""
    offset = 0
    for payload in payloads:
        memory[offset : offset + 8].view(np.int64)[0] = payload.size
        offset += _LENGTH_NBYTES
        memory[offset : offset + payload.size] = payload
        offset += aligned(payload.size)
    return offset


def framed_nbytes(room: int) -> int:
    """Return the bytes that `frame` writes at most for a payload of `room` bytes."""
    return _LENGTH_NBYTES + aligned(room)


def framed(memory: NDArray[np.uint8], count: int) -> tuple[list[NDArray[np.uint8]], int]:
    """Return what `frame` has written of so many payloads, and how many bytes it was. Local.

    Raises:
        ValueError: it is not that many.
    """
    found, offset = [], 0
    for _ in range(count):
        length = -1
        if offset + _LENGTH_NBYTES <= memory.size:
            length = int(memory[offset : offset + 8].view(np.int64)[0])
        offset += _LENGTH_NBYTES
        if not 0 <= length <= memory.size - offset:
            raise ValueError("it is not whole")
        found.append(memory[offset : offset + length])
        offset += aligned(length)
    return found, offset


def others(group: Group) -> list[int]:
    """Return all other ranks in the order in which to send to them: not all to the same one at once."""
    return [(group.rank + distance) % group.size for distance in range(1, group.size)]


def spread(group: Group, buffers: list[PayloadBuffer]) -> int:
    """Give this rank's payload, its place in `buffers`, to all others, and receive theirs. Collective.

    Returns:
        How many bytes were sent.
    """
    mine, ranks = buffers[group.rank], others(group)
    return exchange(group, [(rank, mine) for rank in ranks], [(rank, buffers[rank]) for rank in reversed(ranks)])
