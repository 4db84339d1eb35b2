"""Which collective call every rank is in: a board for each, that the others of its node can read.

Collective calls of a group are numbered, and each has a fingerprint: its name, dtype, length and operation in one
integer that can be read back. All ranks have to make the same calls in the same order, so the same number means the
same fingerprint; where it does not, both sides can be shown. The board tells what a rank waits for, or did last.
"""

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcvol.comm.processes import Process
from hpcvol.comm.shared_memory import SharedMemory, allocate
from hpcvol.errors import HpcvolError, MemberError, MismatchError

if TYPE_CHECKING:
    from hpcvol.comm.group import Group

# Their places are their codes; 0 is none.
NAMES = (
    "",
    "allreduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "all_to_all",
    "gather",
    "scatter",
    "send",
    "receive",
    "barrier",
    "broadcast_object",
    "gather_objects",
    "any",
    "union",
    "split",
    "exact_mean",
)
DTYPES = ("", "float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8")
OPS = ("", "sum", "mean", "min", "max", "product")
MAX_NUMEL = 2**47 - 1

# A board is int64[64]: eight cache lines. Places in it:
FINGERPRINT = 0  # of the call that this rank entered last
ENTERED_NS = 1  # when, CLOCK_MONOTONIC
ENTERED = 2  # its number; written last, so that who sees it sees the rest
DONE = 8  # number of the last call in which this rank has written all that others read (`direct` only)
LEFT_FINGERPRINT = 16  # of the call that this rank left last
LEFT_NS = 17
LEFT = 18
PHASES = 24  # from here on: how far the kernels of shared memory are within a call
BOARD_NUMEL = 64

_LINE = struct.Struct("3q")


@dataclass(frozen=True)
class Call:
    """One collective call, as all ranks have to make it.

    Attributes:
        name: one of `NAMES`.
        dtype: one of `DTYPES`; "" where no vector is moved.
        numel: elements of the vector, the same on all ranks (0 where they may differ).
        op: one of `OPS`.
        fingerprint: all of these in one int64.
    """

    name: str
    dtype: str
    numel: int
    op: str
    fingerprint: int

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(name: str, dtype: "np.dtype[Any] | None" = None, numel: int = 0, op: str = "") -> "Call":
        """Return the call, the same object for the same arguments."""
        kind = "" if dtype is None else dtype.name
        if not 0 <= numel <= MAX_NUMEL:
            raise ValueError(f"{numel} elements: expected 0 to {MAX_NUMEL}")
        code = (NAMES.index(name) << 8) | (DTYPES.index(kind) << 4) | OPS.index(op)
        return Call(name, kind, numel, op, (code << 47) | numel)

    @staticmethod
    def from_fingerprint(fingerprint: int) -> "Call":
        """Return the call that has this fingerprint."""
        code, numel = fingerprint >> 47, fingerprint & MAX_NUMEL
        return Call(NAMES[code >> 8], DTYPES[(code >> 4) & 15], numel, OPS[code & 15], fingerprint)

    def __str__(self) -> str:
        """Such as `allreduce sum float32[25000]`."""
        vector = f"{self.dtype}[{self.numel}]" if self.dtype else ""
        return " ".join(part for part in (self.name, self.op, vector) if part)


@dataclass(frozen=True)
class Progress:
    """What a rank's board says.

    Attributes:
        sequence: number of the call that it entered last, from 1; 0 where it made none.
        call: that call; None where it made none.
        entered_ns: when it entered, CLOCK_MONOTONIC.
        inside: whether it is still in it.
        left: the call that it left last; None where there is none.
        left_ns: when it left.
    """

    sequence: int
    call: Call | None
    entered_ns: int
    inside: bool
    left: Call | None
    left_ns: int


class Calls:
    """The calls of one group. Made with the group, collectively over `group.node`.

    Attributes:
        boards: int64[ranks of the node][64], by node rank; this rank's alone where there is no shared memory.
        addresses: int64[ranks of the node], where each board is.
        me: this rank's place in both.
        shared: whether peers can see the boards of each other.
    """

    def __init__(self, group: "Group") -> None:
        node = group.node
        memory = allocate(group, BOARD_NUMEL * 8) if node.size > 1 else None
        self._memory: SharedMemory | None = memory
        self.shared = memory is not None
        parts = memory.of if memory is not None else (np.zeros(BOARD_NUMEL * 8, np.uint8),)
        self.boards: tuple[NDArray[np.int64], ...] = tuple(part.view(np.int64) for part in parts)
        self.addresses = np.array([board.ctypes.data for board in self.boards], np.int64)
        self.me = node.rank if memory is not None else 0
        self._processes: Sequence[Process] = memory.processes if memory is not None else ()
        self._names = [node.name_of(rank) for rank in range(node.size)] if self.shared else [node.name_of_me]
        self._mine = self.boards[self.me].data
        self._error: HpcvolError | None = None

    def begin(self, call: Call) -> None:
        """Say on the board that this rank enters `call`. Local."""
        mine = self._mine
        _LINE.pack_into(mine, FINGERPRINT * 8, call.fingerprint, time.monotonic_ns(), mine[ENTERED] + 1)

    def end(self) -> None:
        """Say on the board that this rank has left the call that it entered last. Local."""
        mine = self._mine
        _LINE.pack_into(mine, LEFT_FINGERPRINT * 8, mine[FINGERPRINT], time.monotonic_ns(), mine[ENTERED])

    def progress(self, place: int) -> Progress:
        """Return what the board at `place` (a node rank where boards are shared) says now. Local."""
        board = self.boards[place]
        while True:
            fingerprint, entered_ns, entered = board[FINGERPRINT : ENTERED + 1].tolist()
            left_fingerprint, left_ns, left = board[LEFT_FINGERPRINT : LEFT + 1].tolist()
            if board[ENTERED] == entered and board[LEFT] == left:
                break
        return Progress(
            entered,
            Call.from_fingerprint(fingerprint) if entered else None,
            entered_ns,
            left < entered,
            Call.from_fingerprint(left_fingerprint) if left else None,
            left_ns,
        )

    def fail(self, error: HpcvolError) -> None:
        """Make `poll` raise `error` from now on. Local; for the thread that watches."""
        self._error = error

    def poll(self) -> None:
        """Return if waiting on makes sense. Local; every wait of limited length calls this before it goes on.

        Raises:
            MismatchError: a member of this node is in another call of the same number.
            MemberError: a member of this node has died.
            HpcvolError: whatever was given to `fail`.
        """
        if self._error is not None:
            raise self._error
        self._compare()
        for name, process in zip(self._names, self._processes, strict=False):
            if not process.alive():
                here = self.progress(self.me).call
                raise MemberError(f"{name} has died while others wait for it in {here}: see what it said last")

    def _compare(self) -> None:
        """Raise where a peer is in a call of the same number and another fingerprint."""
        mine = self.progress(self.me)
        for place in range(len(self.boards)):
            theirs = self.progress(place)
            if theirs.sequence != mine.sequence or theirs.call == mine.call:
                continue
            time.sleep(0.002)  # a peer may have been between writing the one and the other
            if self.progress(place) == theirs:
                raise mismatch(mine.sequence, {self._names[self.me]: mine.call, self._names[place]: theirs.call})


def mismatch(sequence: int, calls: dict[str, Call | None]) -> MismatchError:
    """Return the error that shows what each of some members (by name, two at least) called as number `sequence`."""
    said = ", ".join(f"{name} calls {call}" for name, call in calls.items())
    return MismatchError(
        f"members disagree about collective call {sequence} of their group: {said}. All have to make the same calls in "
        "the same order: look for a branch that depends on the rank, on local data, or on an exception that was caught"
    )
