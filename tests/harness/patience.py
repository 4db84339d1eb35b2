"""Waiting for something to come about, for a limited time."""

import time
from collections.abc import Callable

LIMIT_SECONDS = 20.0


def until(condition: Callable[[], bool]) -> bool:
    """Wait for `condition`; return whether it came about in time."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True
