"""Two ways of waiting for messages: as fast as can be, or without taking the core from a thread that computes."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# How often a wait asks whether it still makes sense.
POLL_SECONDS = 0.05

_EAGER_TESTS = 20
_YIELDS_PER_LOOK = 32


class Waiting(Protocol):
    """How the messages of a group are waited for; `group.waiting` is one."""

    def until(self, done: Callable[[], bool], poll: Callable[[], None]) -> None:
        """Return when `done()` is true; every `POLL_SECONDS` call `poll()`, which raises where nothing will come."""


@dataclass(frozen=True)
class Spinning:
    """For the thread that has nothing else to do: asks without a pause, and gives way to other processes that can run."""

    def until(self, done: Callable[[], bool], poll: Callable[[], None]) -> None:
        """Wait as `Waiting` says."""
        for _ in range(_EAGER_TESTS):
            if done():
                return
        due = time.monotonic() + POLL_SECONDS
        while True:
            for _ in range(_YIELDS_PER_LOOK):
                if done():
                    return
                os.sched_yield()
            if time.monotonic() > due:
                poll()
                due = time.monotonic() + POLL_SECONDS


@dataclass(frozen=True)
class Sleeping:
    """For a thread beside one that computes: sleeps between two looks, longer each time.

    A wait in the MPI library, and `Spinning`, would take half of the core from the thread that computes.

    Args:
        least_seconds: the first sleep.
        most_seconds: the longest.
    """

    least_seconds: float = 20e-6
    most_seconds: float = 1e-3

    def until(self, done: Callable[[], bool], poll: Callable[[], None]) -> None:
        """Wait as `Waiting` says."""
        pause, slept = self.least_seconds, 0.0
        while not done():
            time.sleep(pause)
            slept += pause
            pause = min(2 * pause, self.most_seconds)
            if slept > POLL_SECONDS:
                poll()
                slept = 0.0
