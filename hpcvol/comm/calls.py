"""Which collective call every rank is in: a board for each, that the others of its node can read.

Collective calls of a group are numbered, and each has a fingerprint: its name, dtype, length, operation and pinned
algorithm in one integer that can be read back. All ranks have to make the same calls in the same order, so the same
number means the same fingerprint; where it does not, both sides can be shown. The board tells what a rank waits for, or
did last.
"""

import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcvol.comm.processes import Process
from hpcvol.comm.shared_memory import SharedMemory, allocate
from hpcvol.comm.stacks import main_stack, site, stack_of
from hpcvol.comm.trouble import trouble
from hpcvol.errors import HpcvolError

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
    "choose_algorithm",
    "exit",
    "compare_clocks",
    "agree",
)
DTYPES = ("", "float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8")
OPS = ("", "sum", "mean", "min", "max", "product")
# Of all-reduces: what was asked for.
ALGORITHMS = (
    "auto",
    "ring",
    "recursive_doubling",
    "halving_doubling",
    "hierarchical",
    "library",
    "staged",
    "cross_memory",
)
# A fingerprint from its top: sign, name (5 bits), algorithm, dtype, op (4 each), length.
NUMEL_BITS = 46
MAX_NUMEL = 2**NUMEL_BITS - 1

# A board is int64[64]: eight cache lines. Places in it:
FINGERPRINT = 0  # of the call that this rank entered last
ENTERED_NS = 1  # when, CLOCK_MONOTONIC
ENTERED = 2  # its number; written last, so that who sees it sees the rest
DONE = 8  # number of the last call in which this rank has written all that others read (`direct` only)
LEFT_FINGERPRINT = 16  # of the call that this rank left last
LEFT_NS = 17
LEFT = 18
LEAVING = 19  # 1 when the program of this rank has come to its end
PHASES = 24  # from here on: how far the kernels of shared memory are within a call
BOARD_NUMEL = 64

# Calls of these names begin with one exchange among all ranks, which ends also where they are in different ones.
_MEETINGS = ("barrier", "broadcast_object", "gather_objects", "any", "union", "split", "exit")

_LINE = struct.Struct("3q")

_live: "weakref.WeakSet[Calls]" = weakref.WeakSet()
_live_lock = threading.Lock()
_locate: "Callable[[Calls, int], str] | None" = None


@dataclass(frozen=True)
class Call:
    """One collective call, as all ranks have to make it.

    Attributes:
        name: one of `NAMES`.
        dtype: one of `DTYPES`; "" where no vector is moved.
        numel: elements of the vector, the same on all ranks (0 where they may differ); the root of a broadcast object.
        op: one of `OPS`.
        algorithm: one of `ALGORITHMS`, as all ranks have to ask for it.
        fingerprint: all of these in one int64.
    """

    name: str
    dtype: str
    numel: int
    op: str
    algorithm: str
    fingerprint: int

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(
        name: str, dtype: "np.dtype[Any] | None" = None, numel: int = 0, op: str = "", algorithm: str = "auto"
    ) -> "Call":
        """Return the call, the same object for the same arguments."""
        kind = "" if dtype is None else dtype.name
        if not 0 <= numel <= MAX_NUMEL:
            raise ValueError(f"{numel} elements: expected 0 to {MAX_NUMEL}")
        kinds = (ALGORITHMS.index(algorithm) << 8) | (DTYPES.index(kind) << 4) | OPS.index(op)
        code = (NAMES.index(name) << 12) | kinds
        return Call(name, kind, numel, op, algorithm, (code << NUMEL_BITS) | numel)

    @staticmethod
    def from_fingerprint(fingerprint: int) -> "Call":
        """Return the call that has this fingerprint."""
        code, numel = fingerprint >> NUMEL_BITS, fingerprint & MAX_NUMEL
        dtype, op, algorithm = DTYPES[(code >> 4) & 15], OPS[code & 15], ALGORITHMS[(code >> 8) & 15]
        return Call(NAMES[code >> 12], dtype, numel, op, algorithm, fingerprint)

    @property
    def code(self) -> int:
        """The fingerprint without the length."""
        return self.fingerprint >> NUMEL_BITS

    @property
    def meets(self) -> bool:
        """Whether it begins with an exchange among all ranks, where those that disagree find out and can go on."""
        return self.name in _MEETINGS

    def __str__(self) -> str:
        """Such as `allreduce sum float32[25000]`, and ` by ring` where an algorithm was asked for."""
        if self.name == "broadcast_object":
            return f"{self.name} from rank {self.numel}"
        vector = f"{self.dtype}[{self.numel}]" if self.dtype else ""
        by = "" if self.algorithm == "auto" else f"by {self.algorithm}"
        return " ".join(part for part in (self.name, self.op, vector, by) if part)


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

    def called(self, sequence: int) -> Call | None:
        """Return the call that the rank made as number `sequence`, None where the board does not tell."""
        if self.sequence == sequence:
            return self.call
        return self.left if self.inside and self.sequence == sequence + 1 else None


@dataclass(frozen=True)
class Row:
    """What is known of one rank of a group.

    Attributes:
        progress: what its board says.
        leaving: whether its program has come to its end.
        alive: whether its process runs.
    """

    progress: Progress
    leaving: bool
    alive: bool


class Calls:
    """The calls of one group. Made with the group, collectively over `group.node`.

    Attributes:
        name: a random name of the group, the same on all of its ranks.
        members: member id by rank of the group.
        names: the same in words.
        ranks: of the group, by place on `boards`.
        processes: by place on `boards`; none where boards are not shared.
        abandoned: whether this rank gave a call up, which other ranks may still be in.
        place: where in its code this rank gave a call up.
        suspicion: number of the call in which this rank saw first that it may wait in vain, and `time.monotonic()`.
        note: what went wrong on this rank before it came to the call at hand.
        boards: int64[ranks of the node][64], by node rank; this rank's alone where there is no shared memory.
        addresses: int64[ranks of the node], where each board is.
        me: this rank's place in both.
        shared: whether peers can see the boards of each other.
    """

    def __init__(self, group: "Group", name: str) -> None:
        node = group.node
        memory = allocate(group, BOARD_NUMEL * 8) if node.size > 1 else None
        self._memory: SharedMemory | None = memory
        self.shared = memory is not None
        parts = memory.of if memory is not None else (np.zeros(BOARD_NUMEL * 8, np.uint8),)
        self.boards: tuple[NDArray[np.int64], ...] = tuple(part.view(np.int64) for part in parts)
        self.addresses = np.array([board.ctypes.data for board in self.boards], np.int64)
        self.me = node.rank if memory is not None else 0
        self.name = name
        self.members = group.members
        self.names = [group.name_of(rank) for rank in range(group.size)]
        self.ranks = [group.members.index(member) for member in node.members] if self.shared else [group.rank]
        self.abandoned = False
        self.place = ""
        self.suspicion: tuple[int, float] | None = None
        self.note = ""
        self.processes: Sequence[Process] = memory.processes if memory is not None else ()
        self._mine = self.boards[self.me].data
        self._error: HpcvolError | None = None
        self._told: tuple[int, HpcvolError] | None = None
        self._raising: tuple[int, float] = (0, 0.0)
        self._polled_ns = 0
        with _live_lock:
            _live.add(self)

    def close(self) -> None:
        """Say that no more calls will be made: nobody watches over them any more. Local."""
        with _live_lock:
            _live.discard(self)

    def begin(self, call: Call) -> None:
        """Say on the board that this rank enters `call`. Local."""
        mine = self._mine
        _LINE.pack_into(mine, FINGERPRINT * 8, call.fingerprint, time.monotonic_ns(), mine[ENTERED] + 1)

    def end(self) -> None:
        """Say on the board that this rank has left the call that it entered last. Local."""
        mine = self._mine
        _LINE.pack_into(mine, LEFT_FINGERPRINT * 8, mine[FINGERPRINT], time.monotonic_ns(), mine[ENTERED])

    @property
    def identity(self) -> tuple[int, int]:
        """Number and fingerprint of the call that this rank entered last."""
        return self._mine[ENTERED], self._mine[FINGERPRINT]

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

    def here(self) -> str:
        """Return where in its code this rank is. Local; for its own thread."""
        return site(stack_of(sys._getframe())) + (self.note and f" after {self.note}")

    def seen_at(self) -> str:
        """Return where in its code this rank is, or gave a call up. Local; for other threads than its own."""
        found = "" if self.place else site(main_stack())
        # Asked after the stack was taken: who gives a call up says so, and is elsewhere a moment later.
        return self.place or found

    def locate(self, rank: int) -> str:
        """Return where in its code the rank of the group is, "" where nobody knows. Local, some seconds at most."""
        return "" if _locate is None else _locate(self, rank)

    def rows(self) -> dict[int, Row]:
        """Return what is known of the ranks that have boards here, this one too, by rank of the group. Local."""
        found = {}
        for place, rank in enumerate(self.ranks):
            alive = place == self.me or self.processes[place].alive()
            found[rank] = Row(self.progress(place), bool(self.boards[place][LEAVING]), alive)
        return found

    @property
    def leaving(self) -> bool:
        """Whether the program of this rank has come to its end."""
        return bool(self._mine[LEAVING])

    def leave(self) -> None:
        """Say on the board that the program of this rank has come to its end. Local."""
        self._mine[LEAVING] = 1

    @property
    def polls(self) -> bool:
        """Whether this rank has called `poll` in the call that it is in."""
        return self._polled_ns > int(self._mine[ENTERED_NS])

    def fail(self, sequence: int, error: HpcvolError) -> None:
        """Make `poll` raise `error` in call `sequence`, and from then on. Local; for the thread that watches."""
        self._told = sequence, error

    def about_to_raise(self) -> None:
        """Say that this rank knows that its call fails, and will raise when it knows where the others are. Local."""
        self._raising = self.identity[0], time.monotonic()

    def raising_seconds(self) -> float | None:
        """Return how long ago `about_to_raise` was called in the call that this rank is in, None if not. Local."""
        sequence, since = self._raising
        return time.monotonic() - since if sequence == self.identity[0] else None

    def poll(self) -> None:
        """Return if waiting on makes sense. Local; every wait of limited length calls this before it goes on.

        Raises:
            MismatchError: a member of this node is in another call of the same number.
            MemberError: a member of this node has died, or its program has come to its end.
            HpcvolError: whatever was given to `fail`.
        """
        self._polled_ns = time.monotonic_ns()
        if self._error is None and self._told is not None and self._told[0] == self.identity[0]:
            self._error = self._told[1]
        if self._error is None:
            self._error = trouble(self, self.here)
        if self._error is not None:
            self.place = self.place or self.here()
            self.abandoned = True
            raise self._error


def locate_with(function: "Callable[[Calls, int], str]") -> None:
    """From now on have `function` return where in its code a rank of a group is, "" where nobody knows. Local."""
    global _locate
    _locate = function


def live_calls() -> list[Calls]:
    """Return the calls of all groups of this process. Local, from any thread."""
    with _live_lock:
        return list(_live)
