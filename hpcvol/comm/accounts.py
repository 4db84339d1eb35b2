"""What is known of a member that others wait for, and in words what it is about. Pure judgement, no looking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcvol.comm.doing import ROUND
from hpcvol.comm.stacks import Frame, Stack, site

# Shares of one processor: less is what the threads of hpcvol and MPI use beside one that stands still.
_IDLE_SHARE = 0.02

# Functions of libraries that compile at their first call, which takes seconds to minutes.
_COMPILERS = (("numba/core", "Numba"), ("torch/_dynamo", "torch.compile"), ("torch/_inductor", "torch.compile"))


@dataclass(frozen=True)
class Account:
    """What one member says of itself, and where it does not answer what others of its host see.

    Attributes:
        name: such as `member 2 (node07)`.
        pid: its process.
        answered: whether it says anything itself.
        letter: state of its main thread as in /proc/PID/stat; "" where its process is gone, "?" where nobody sees it.
        share: processor time that it used lately, as a share of one processor; None where nobody knows.
        leaving: whether its program has come to its end.
        doing: what it says to be doing, and for how many seconds.
        waits: the collective call of some group that it is in, in words; None where in none.
        stacks: of its threads by name, innermost frame first; that of the main thread is called `MainThread`.
        forced: stacks as its process wrote them at a signal, where it did not answer.
    """

    name: str
    pid: int
    answered: bool
    letter: str = "?"
    share: float | None = None
    leaving: bool = False
    doing: tuple[str, float] | None = None
    waits: str | None = None
    stacks: Mapping[str, Stack] | None = None
    forced: str | None = None

    @property
    def main(self) -> Stack:
        """The stack of the main thread, empty where it is unknown."""
        return list((self.stacks or {}).get("MainThread", []))

    @property
    def excused(self) -> bool:
        """Whether it takes its time for something that may take long, and shows signs of life."""
        alive = self.letter == "D" or (self.share is not None and self.share > _IDLE_SHARE)
        if not self.answered or self.doing is None:
            return False
        # Who waits within its supernode is looked after by those it waits for.
        return alive if self.waits is None else self.doing[0] == ROUND

    def condition(self) -> str:
        """Return in words what this member is about, with what to do where that follows from it."""
        return self._of_process() or (self._of_itself() if self.answered else self._silent())

    def _of_process(self) -> str | None:
        """What the system says settles it."""
        if self.letter in ("", "Z", "X"):
            return f"has ended: its process {self.pid} is gone; see what it said last, or whether it was killed (dmesg)"
        if self.letter == "T":
            return f"is stopped (SIGSTOP, Ctrl-Z, or the queue's doing): `kill -CONT {self.pid}` lets it go on"
        if self.letter == "t":
            return "is held by a debugger"
        return None

    def _of_itself(self) -> str:
        if self.leaving:
            return "has come to the end of its program: look for an exit, return or break that others do not reach"
        if self.waits is not None:
            return f"waits itself in {self.waits}"
        compiler = compiler_in(self.main)
        if compiler:
            return f"compiles with {compiler}{self._used()}"
        if self.doing is not None:
            what, seconds = self.doing
            return f"is {what}, for {seconds:.0f} s now{self._used()}"
        if self.letter == "D":
            return "waits for a disk or a network file system"
        if self.share is None:
            return "is elsewhere in its code"
        if self.share < _IDLE_SHARE:
            return "stands still: it waits for a lock, another thread, a file, the network or a device"
        return f"computes{self._used()}"

    def _silent(self) -> str:
        if self.letter == "?":
            return "does not answer, and nobody sees its process: its host is lost, cut off or overloaded"
        if self.letter == "D":
            return "does not answer: it waits for a disk or a network file system"
        held = "does not answer: native code keeps Python's lock (the GIL)"
        if self.share is not None and self.share < _IDLE_SHARE:
            return f"{held} and waits for something"
        return f"{held} and computes{self._used()}"

    def _used(self) -> str:
        if self.share is None:
            return ""
        if self.share < _IDLE_SHARE:
            return " (no processor time used lately)"
        return f" ({100 * self.share:.0f} % of a processor lately)"


def compiler_in(stack: Sequence[Frame]) -> str | None:
    """Return which compiler is at work in `stack`, None where none is."""
    for frame in stack:
        for part, name in _COMPILERS:
            if f"/{part}" in frame.file:
                return name
    return None


def account_from(name: str, pid: int, answer: Mapping[str, Any]) -> Account:
    """Return what a member said, as it came over the network."""
    doing, stacks = answer["doing"], answer["stacks"]
    return Account(
        name,
        pid,
        True,
        answer["letter"],
        answer["share"],
        answer["leaving"],
        None if doing is None else (doing[0], doing[1]),
        answer["waits"],
        {thread: [Frame(*frame) for frame in stack] for thread, stack in stacks.items()},
    )


def where(account: Account) -> str:
    """Return where in its code a member is, in a few words."""
    return site(account.main)
