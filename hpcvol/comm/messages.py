"""Messages between the ranks of a group that belong to one call: they pair up with those of the same call only."""

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from hpcvol.comm.faults import explain
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Vector
from hpcvol.errors import MismatchError

if TYPE_CHECKING:
    from mpi4py import MPI

# Longer vectors go in pieces: MPI before version 4 counts bytes in an int, as Open MPI 5 does.
MAX_MESSAGE_NBYTES = 2**30

# Of messages that belong to no call: 0 to MAX_TAG. MPI allows 32767 at least; one half is for calls.
MAX_TAG = 2**14 - 1

_SPREAD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: neighbouring numbers get tags far apart

# Requests that were given up: each holds its memory, into which MPI may still write.
_given_up: "list[MPI.Request]" = []


class Message:
    """One message on its way: wait for it with `Messages.wait`."""

    def __init__(self, request: "MPI.Request", peer: int, vector: Vector | None = None, *, up_to: bool = False) -> None:
        self.request = request
        self.peer = peer
        self.vector = vector  # where it arrives; None for one that is sent
        self.up_to = up_to  # whether a shorter one may arrive
        self.nbytes = 0 if vector is None else vector.nbytes  # once it has arrived: how long it is


class Messages:
    """The messages of one call; when the `with` block ends all have arrived, or have been given up after an error.

        with Messages(group) as messages:
            arriving = messages.receive(theirs, source)
            messages.send(mine, destination)
            messages.wait(arriving)

    Vectors that were given to `send` may not change, and those given to `receive` may not be looked at, until `wait` or
    the end of the block. Messages between two ranks arrive in the order in which they were sent. Those of ranks that
    are in different calls do not pair up, because the tag tells the call.

    Args:
        group: whose ranks exchange messages.
        tag: 0 to `MAX_TAG`, for messages of no call; None for those of the call that the group is in.

    Raises:
        MemberError: another member died.
        MismatchError: other members are in another call, or sent another length.
        CommError: MPI failed otherwise.
    """

    def __init__(self, group: Group, tag: int | None = None) -> None:
        from mpi4py import MPI

        self._group = group
        self._communicator = group.communicator
        half = ((MPI.COMM_WORLD.Get_attr(MPI.TAG_UB) or 0) + 1) // 2
        self._tag = _digest(group.call_identity) % half if tag is None else half + tag
        self._byte = MPI.BYTE
        self._status = MPI.Status()
        self._open: list[Message] = []

    def __enter__(self) -> Self:
        return self

    def send(self, vector: Vector, destination: int) -> Message:
        """Start to send `vector` to rank `destination`."""
        request = self._communicator.Isend([vector.view(np.uint8), self._byte], destination, self._tag)
        return self._opened(Message(request, destination))

    def receive(self, vector: Vector, source: int) -> Message:
        """Start to receive `vector` from rank `source`, which sends as many bytes."""
        request = self._communicator.Irecv([vector.view(np.uint8), self._byte], source, self._tag)
        return self._opened(Message(request, source, vector))

    def receive_up_to(self, vector: Vector, source: int) -> Message:
        """Start to receive at most `vector` from rank `source`; `nbytes` of the message tells how much has arrived."""
        request = self._communicator.Irecv([vector.view(np.uint8), self._byte], source, self._tag)
        return self._opened(Message(request, source, vector, up_to=True))

    def wait(self, message: Message) -> None:
        """Wait until a message has arrived, or the memory of a sent one may change. A second time returns at once."""
        if not message.request:
            return
        done = self._test_of(message)
        if not done():
            self._group.waiting.until(done, self._group.poll)
        if message.up_to:
            message.nbytes = self._status.Get_count(self._byte)
        elif message.vector is not None:
            self.take(message.vector, self._status.Get_count(self._byte), message.peer)

    def take(self, vector: Vector, nbytes: int, source: int) -> None:
        """Accept a message of `nbytes` from rank `source` that has arrived in `vector`."""
        if nbytes != vector.nbytes:
            raise MismatchError(
                f"{self._group.name_of(source)} sent {nbytes} bytes where {self._group.name_of_me} expected "
                f"{vector.nbytes}: give all members the same counts and dtypes"
            )

    def _test_of(self, message: Message) -> Callable[[], bool]:
        request, status = message.request, self._status
        return request.Test if message.vector is None else lambda: request.Test(status)

    def _opened(self, message: Message) -> Message:
        self._open.append(message)
        return message

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                raise error
            for message in self._open:
                self.wait(message)
        except BaseException as caught:
            self._give_up()
            told = explain(self._group, caught)
            if told is not None:
                raise told from caught
            if caught is not error:
                raise

    def _give_up(self) -> None:
        for message in self._open:
            if message.request:
                _given_up.append(message.request)
                if message.vector is not None:
                    with suppress(Exception):  # of a communicator on which nothing works any more
                        message.request.Cancel()


def _digest(numbers: tuple[int, ...]) -> int:
    digest = 0
    for number in numbers:
        digest = ((digest ^ number) * _SPREAD) & (2**64 - 1)
        digest ^= digest >> 29
    return digest
