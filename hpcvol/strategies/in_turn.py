"""A thread that communicates beside the one that computes: jobs one after another, over a group of their own."""

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from hpcvol.comm import Group, threads_may_communicate
from hpcvol.comm.faults import tells_of_loss
from hpcvol.comm.waiting import POLL_SECONDS, Spinning
from hpcvol.errors import CommError

Job = Callable[[], None]

_NAME = "turns"


def turns_of(group: Group) -> "InTurn":
    """Return the turns of `group`. Collective when first asked for."""
    if _NAME not in group.kept:
        group.kept[_NAME] = InTurn(group)
    turns: InTurn = group.kept[_NAME]
    return turns


_LEAST_SECONDS = 50e-6
_MOST_SECONDS = 1e-3
_SPIN_NS = 10_000


class InTurn:
    """Runs jobs in the order in which they are given, the same on all ranks.

    A group has one, made by `turns_of` and kept as long as the group. Where this MPI does not allow two threads at a
    time to call it, jobs run when they are waited for.

    Args:
        group: the ranks that take part.

    Attributes:
        group: the same ranks again, for the jobs' communication alone.
    """

    def __init__(self, group: Group) -> None:
        self.group = group.split(0)
        self._waiting = Unhurried()
        self.group.waiting = self._waiting
        self._threaded = threads_may_communicate()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: the end
        self._given = 0
        self._done = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    def give(self, job: Job) -> None:
        """Let `job` run after those that were given before. Local."""
        self._given += 1
        self._jobs.put(job)
        if self._threaded and self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hpcvol-communication", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until all jobs are done, and raise what one of them raised."""
        self._waiting.hurry = True
        try:
            if not self._threaded:
                while self._done < self._given and (job := self._jobs.get()) is not None:
                    self._run(job)
            with self._changed:
                self._changed.wait_for(lambda: self._done == self._given)
        finally:
            self._waiting.hurry = False
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Let jobs that are not done fail: nobody will wait for them. Local; the group is of no use after that."""
        if self._done != self._given:
            self._waiting.given_up = True

    def abandon(self) -> None:
        """Let jobs that are not done fail here and on all ranks, and end the thread. Local; of no use after that.

        Whoever uses a group's turns calls it; the first call counts.
        """
        if self._ended:
            return
        self._ended = True
        self._waiting.given_up = True
        self.group.abandon()
        self._end_thread()

    def close(self) -> None:
        """End the thread, and let jobs that are not done fail. Collective; of no use after that."""
        if self._ended:
            return
        self._ended = True
        self.give_up()
        self._end_thread()
        if self._error is None:  # else others may be elsewhere, and messages of this group on their way
            self.group.close()

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._run(job)

    def _run(self, job: Job) -> None:
        try:
            # After an error the ranks are no longer at the same place; what follows would only wait.
            if self._error is None:
                job()
        except BaseException as error:
            self._error = error
            if tells_of_loss(error):  # others may wait for this member's part, and nobody waits for the error yet
                with suppress(RuntimeError):  # it was abandoned meanwhile
                    self.group.give_up()
        with self._changed:
            self._done += 1
            self._changed.notify_all()


class Unhurried:
    """Sleeps between two looks while another thread computes, and hurries when that has come to wait.

    A wait inside the MPI library, or a look without pause, would take half of the core.
    """

    def __init__(self) -> None:
        self.hurry = False
        self.given_up = False

    @property
    def spin_ns(self) -> int:
        """As `hpcvol.comm.waiting.Waiting` says."""
        return Spinning.spin_ns if self.hurry else _SPIN_NS

    def until(self, done: Callable[[], bool], poll: Callable[[], None]) -> None:
        """Wait as `hpcvol.comm.waiting.Waiting` says."""
        pause, due = _LEAST_SECONDS, time.monotonic() + POLL_SECONDS
        while not done():
            if self.given_up:
                raise CommError("the run was closed while its gradients were on their way")
            if self.hurry:
                os.sched_yield()
            else:
                time.sleep(pause)
                pause = min(2 * pause, _MOST_SECONDS)
            if time.monotonic() > due:
                poll()
                due = time.monotonic() + POLL_SECONDS
