"""How messages are waited for: as fast as can be; a thread beside one that computes brings its own way."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# How often a wait asks whether it still makes sense.
POLL_SECONDS = 0.05

# A rank that waits looks without a pause at first, and gives its core to those that compute after some milliseconds.
_EAGER_LOOKS = 20
_EAGER_SECONDS = 0.005
_PAUSE_SECONDS = 0.0002


class Waiting(Protocol):
    """How the messages of a group are waited for; `group.waiting` is one."""

    @property
    def spin_ns(self) -> int:
        """How long kernels of shared memory may look for others without a pause, between two looks of `until`."""

    def until(self, done: Callable[[], bool], poll: Callable[[], None]) -> None:
        """Return when `done()` is true; every `POLL_SECONDS` call `poll()`, which raises where nothing will come."""


@dataclass(frozen=True)
class Spinning:
    """For a thread that has nothing else to do: looks again and again, and gives way to whoever can run."""

    spin_ns: int = 1_000_000

    def until(self, done: Callable[[], bool], poll: Callable[[], None]) -> None:
        """Wait as `Waiting` says."""
        began = polled = time.monotonic()
        looks = 0
        while not done():
            # On a busy machine one look can take long: the clock decides, however few looks there were.
            looks += 1
            now = time.monotonic()
            if now - polled > POLL_SECONDS:
                poll()
                polled = now
            if now - began >= _EAGER_SECONDS:
                time.sleep(_PAUSE_SECONDS)
            elif looks > _EAGER_LOOKS:
                os.sched_yield()
