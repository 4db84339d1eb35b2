"""Where in its code a process is: the stacks of its threads, also while native code keeps Python's lock."""

import contextlib
import faulthandler
import os
import re
import signal
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

# Sent by a person: `kill -USR2 PID` asks for the stacks of all members.
DEMAND = signal.SIGUSR2
# Sent by another member of the host to one that does not answer: a number that nobody else uses.
FORCE = signal.SIGRTMIN + 9

_PACKAGE = Path(__file__).parents[1]
_MECHANISM = (str(_PACKAGE / "comm"), str(_PACKAGE / "collectives"))
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_MAX_FRAMES = 40
# What faulthandler writes.
_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')
# How long a process may take to write its stacks: it does so when a busy host gives it a core.
FORCE_SECONDS = 4.0


class Frame(NamedTuple):
    """One line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """Such as `/home/me/train.py:12 main`; files of hpcvol are named from the package on."""
        path = Path(self.file)
        file = path.relative_to(_PACKAGE.parent) if path.is_relative_to(_PACKAGE) else path
        return f"{file}:{self.line} {self.function}"


Stack = list[Frame]


def stack_of(frame: FrameType | None) -> Stack:
    """Return the stack that ends in `frame`, the innermost first."""
    found: Stack = []
    while frame is not None and len(found) < _MAX_FRAMES:
        found.append(Frame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


def main_stack() -> Stack:
    """Return the stack of the main thread, from any thread; empty where the system has no files in memory. Local."""
    return _stacks_by_thread().get(threading.main_thread().ident or 0, [])


def all_stacks() -> dict[str, Stack]:
    """Return the stacks of all Python threads by their names, from any thread; not those of hpcvol's watch. Local."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = {names.get(ident, f"thread {ident}"): stack for ident, stack in _stacks_by_thread().items()}
    return {name: stack for name, stack in found.items() if not name.startswith("hpcvol-watch")}


def _stacks_by_thread() -> dict[int, Stack]:
    """Return the stacks of all threads at one moment, by their idents.

    What `sys._current_frames` gives belongs to threads that go on while one looks at it: CPython 3.11 crashes there
    once in a while (its issues 106883 and 111363). faulthandler reads all of it under one hold of the lock.
    """
    if not hasattr(os, "memfd_create"):
        return {}
    with open(os.memfd_create("hpcvol-stacks", os.MFD_CLOEXEC), "r+b") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read().decode(errors="replace")
    found: dict[int, Stack] = {}
    stack: Stack = []
    for line in text.splitlines():
        if thread := _THREAD.match(line):
            stack = found[int(thread[1], 16)] = []
        elif (frame := _FRAME.match(line)) and len(stack) < _MAX_FRAMES:
            stack.append(Frame(frame[1], int(frame[2]), frame[3]))
    return found


def outside_of_waiting(stack: Sequence[Frame]) -> Stack:
    """Return the frames around those of the communication itself, and of what that calls; all where there are none."""
    inside = [index for index, frame in enumerate(stack) if frame.file.startswith(_MECHANISM)]
    return list(stack[inside[-1] + 1 :]) if inside else list(stack)


def site(stack: Sequence[Frame]) -> str:
    """Return where a collective was called: the line of hpcvol or of the user that did, and the user's own behind it.

    Frames of the communication itself are left out: they are the same whoever calls.
    """
    caller = outside_of_waiting(stack)
    if not caller:
        return "unknown"
    user = next((frame for frame in caller if _is_users(frame)), None)
    if user is None or user == caller[0]:
        return str(caller[0])
    return f"{caller[0]}, called from {user}"


def _is_users(frame: Frame) -> bool:
    inside = (str(_PACKAGE), *_LIBRARIES, "<frozen")
    return not frame.file.startswith(inside)


class StackFile:
    """A file in memory into which this process writes its stacks at the signals `DEMAND` and `FORCE`.

    The handler is C code that needs no lock of Python's, so that it works whatever the process is doing. Peers of the
    same host read the file through /proc. A signal that the program handles itself already is left to it.

    Attributes:
        fd: of the file; -1 where there is none.
        on_demand: whether `DEMAND` is ours.
    """

    def __init__(self) -> None:
        self.fd = -1
        self.on_demand = False
        if not hasattr(os, "memfd_create"):
            return
        self.fd = os.memfd_create("hpcvol-stacks", os.MFD_CLOEXEC)
        self._seen_nbytes = 0
        for number in (FORCE, DEMAND):
            if signal.getsignal(number) is signal.SIG_DFL:
                faulthandler.register(number, file=self.fd, all_threads=True)
                self.on_demand |= number == DEMAND

    def demanded(self) -> bool:
        """Return whether there came a signal since this was asked last. Local."""
        nbytes = os.fstat(self.fd).st_size if self.fd >= 0 else 0
        came, self._seen_nbytes = nbytes > self._seen_nbytes, nbytes
        return came

    def close(self) -> None:
        """Let go of the signals, and of the file."""
        if self.fd >= 0:
            for number in (FORCE, DEMAND):
                faulthandler.unregister(number)
            os.close(self.fd)
            self.fd = -1


def force_stacks(pid: int, fd: int) -> str | None:
    """Return the stacks that process `pid` of this host writes into its `StackFile` `fd` now; None if it does not.

    Local, `FORCE_SECONDS` at most. Works while native code keeps the interpreter's lock, and not while it is stopped.
    """
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/fd/{fd}").open("rb") as file:
        before = os.fstat(file.fileno()).st_size
        os.kill(pid, FORCE)
        until = time.monotonic() + FORCE_SECONDS
        nbytes = before
        while time.monotonic() < until:
            time.sleep(0.05)
            now = os.fstat(file.fileno()).st_size
            if now == nbytes > before:  # it has stopped growing
                file.seek(before)
                return _without_watch(file.read(nbytes - before).decode(errors="replace"))
            nbytes = now
    return None


def _without_watch(text: str) -> str:
    """Leave out the threads of hpcvol's watch, which are there in every process."""
    own = [str(_PACKAGE / "comm" / name) for name in ("watch.py", "status_service.py")]
    threads = text.strip().split("\n\n")
    return "\n".join(thread for thread in threads if not any(name in thread for name in own))
