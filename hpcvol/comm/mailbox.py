"""Letters between any two ranks at any time, outside of calls: between servers and those whom they serve.

A letter is a small object, and a parcel is a vector. Nobody waits for who is dead: letters from others come on, over
the same communicator (MPI's `Ack_failed`).
"""

import pickle
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcvol.comm.faults import tells_of_loss
from hpcvol.comm.group import Group
from hpcvol.comm.surviving import survives_failures
from hpcvol.comm.vectors import Vector
from hpcvol.errors import LostMemberError

if TYPE_CHECKING:
    from mpi4py import MPI

# Requests that were given up: each holds its memory, into which MPI may still write.
_given_up: "list[tuple[MPI.Request, Any]]" = []

_LOOK_SECONDS = 0.05
_LINE_NBYTES = 64
_BOXES = 4
_FEW = 32
_LEAST_SECONDS = 20e-6
_MOST_SECONDS = 1e-3


@dataclass(frozen=True)
class Letter:
    """What has arrived.

    Attributes:
        sender: its rank.
        content: what it said.
    """

    sender: int
    content: Any


class Parcel:
    """A vector on its way: `done` tells whether it has arrived, or has left and its memory is free again."""

    def __init__(self, request: "MPI.Request", vector: Any, lock: threading.Lock) -> None:
        self._lock = lock
        self._request = request
        self._vector = vector  # MPI reads or writes it until it is done
        self._done = False
        self._lost: LostMemberError | None = None

    @property
    def done(self) -> bool:
        """Whether it is. Local.

        Raises:
            LostMemberError: the other one is dead.
        """
        if self._lost is not None:  # MPI tells of it once only
            raise self._lost
        if not self._done:
            try:
                with self._lock:
                    self._done = bool(self._request.Test())
            except Exception as error:
                if not tells_of_loss(error):
                    raise
                self._lost = LostMemberError("the other end of a message died")
                raise self._lost from error
        return self._done

    def give_up(self) -> None:
        """Let nobody wait for it any more; its memory is kept, since MPI may use it yet. Local."""
        if not self._done:
            _given_up.append((self._request, self._vector))


class Mailbox:
    """The letters and parcels of one rank. Made collectively; then all methods are local.

    Two threads may use it, each of them taking letters of other boxes. Only one at a time is inside MPI with it, since
    what MPI does about ranks that have died is not made for more.

    Args:
        group: whose ranks write to each other; nobody else uses it.

    Attributes:
        letters: that this rank has sent.
        parcels: likewise.
    """

    def __init__(self, group: Group) -> None:
        from mpi4py import MPI

        self.group = group
        self._communicator = group.communicator
        self._line = MPI.BYTE.Create_contiguous(_LINE_NBYTES).Commit()
        self._any = MPI.ANY_SOURCE
        self._sent: list[tuple[MPI.Request, Any]] = []
        self._failed: frozenset[int] = frozenset()
        self._looked = 0.0
        self._known = 0
        self._lock = threading.Lock()
        self._parcels: list[Parcel] = []
        self._many = _FEW
        self.letters = 0
        self.parcels = 0

    def write(self, rank: int, box: int, content: Any) -> None:
        """Send a letter to the box `box` of `rank`; to one who is dead it is lost."""
        data = np.frombuffer(pickle.dumps(content, pickle.HIGHEST_PROTOCOL), np.uint8)
        with self._lock:
            self.letters += 1
            try:
                self._sent.append((self._communicator.Isend([data, self._byte], rank, 2 * box), data))
            except Exception as error:
                if not tells_of_loss(error):
                    raise
            self._sent = [one for one in self._sent if not _ended(one[0])]

    def take(self, box: int) -> Letter | None:
        """Return the next letter to `box` of this rank, None where there is none."""
        from mpi4py import MPI

        status = MPI.Status()
        try:
            with self._lock:
                message = self._communicator.Improbe(self._any, 2 * box, status)
                if message is None:
                    return None
                data = np.empty(status.Get_count(self._byte), np.uint8)
                message.Recv([data, self._byte])
        except Exception as error:
            if not tells_of_loss(error):
                raise
            self._look()
            return None
        return Letter(status.Get_source(), pickle.loads(data.tobytes()))

    def send(self, rank: int, box: int, vector: Vector, number: int = 0) -> Parcel:
        """Start to send a vector, of whole lines of 64 bytes, to `rank`; it may not change before it has left.

        Args:
            rank: to whom.
            box: there.
            vector: what.
            number: by which the other one knows it; those of one number arrive in their order.
        """
        try:
            with self._lock:
                self.parcels += 1
                request = self._communicator.Isend(self._in_lines(vector), rank, _tag(box, number))
        except Exception as error:
            if tells_of_loss(error):
                raise LostMemberError(f"{self.group.name_of(rank)} died") from error
            raise
        return self._opened(Parcel(request, vector, self._lock))

    def receive(self, rank: int, box: int, vector: Vector, number: int = 0) -> Parcel:
        """Start to receive a vector from `rank`, which sends as many bytes at most, by the same number."""
        try:
            with self._lock:
                request = self._communicator.Irecv(self._in_lines(vector), rank, _tag(box, number))
        except Exception as error:
            if tells_of_loss(error):
                raise LostMemberError(f"{self.group.name_of(rank)} died") from error
            raise
        return self._opened(Parcel(request, vector, self._lock))

    def give_up(self) -> None:
        """Let what is on its way be lost, and use the box no more. Local."""
        for parcel in self._parcels:
            parcel.give_up()
        _given_up.extend(self._sent)

    @property
    def failed(self) -> frozenset[int]:
        """The ranks that are known to be dead; looked for twenty times a second."""
        if survives_failures() and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look()
        return self._failed

    def until(self, ready: Callable[[], bool]) -> None:
        """Return when `ready()` is true; look often at first, then ever more rarely, down to a thousand times a second.

        Args:
            ready: what is looked at.

        Raises:
            LostMemberError: another rank has given the box up, since somebody died.
        """
        looked, pause = time.monotonic(), _LEAST_SECONDS
        while not ready():
            now = time.monotonic()
            if now - looked > _LOOK_SECONDS:
                looked = now
                with self._lock:
                    revoked = self.group.revoked
                if revoked:
                    raise LostMemberError("a member died, and another one has ended what went on between members")
            time.sleep(pause)
            pause = min(2 * pause, _MOST_SECONDS)

    @property
    def _byte(self) -> "MPI.Datatype":
        from mpi4py import MPI

        return MPI.BYTE

    def _in_lines(self, vector: Vector) -> "tuple[Vector, int, MPI.Datatype]":
        """Return what MPI is told of a vector: Open MPI 5.0 counts to 2^31, and there are vectors of more bytes."""
        if vector.nbytes % _LINE_NBYTES:
            raise ValueError(f"{vector.nbytes} bytes are not lines of {_LINE_NBYTES}")
        return vector.view(np.uint8), vector.nbytes // _LINE_NBYTES, self._line

    def _opened(self, parcel: Parcel) -> Parcel:
        with self._lock:
            if len(self._parcels) > self._many:
                self._parcels = [one for one in self._parcels if not one._done and one._lost is None]
                self._many = _FEW + 2 * len(self._parcels)
            self._parcels.append(parcel)
        return parcel

    def _look(self) -> None:
        from mpi4py import MPI

        self._looked = time.monotonic()
        if not survives_failures():
            return
        with self._lock:
            with suppress(MPI.Exception):  # only who is inside MPI learns of deaths
                self._communicator.Iprobe(self.group.rank, 0)
            everybody = self._communicator.Get_group()
            failed: MPI.Group = self._communicator.Get_failed()
            count = failed.Get_size()
            if count > self._known:
                ranks = MPI.Group.Translate_ranks(failed, list(range(count)), everybody)
                self._failed = frozenset(rank for rank in ranks if rank >= 0)
                self._known = count
                self._communicator.Ack_failed(count)
            failed.Free()
            everybody.Free()


def _tag(box: int, number: int) -> int:
    return 2 * (number * _BOXES + box) + 1


def _ended(request: "MPI.Request") -> bool:
    try:
        return bool(request.Test())
    except Exception as error:
        if tells_of_loss(error):
            return True
        raise
