"""What this process is doing that may take long, in words: for members that wait for it meanwhile."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# What takes long, and is waited for by others than those whom calls in it are made with.
ROUND = "training a round of its supernode"

_current: list[tuple[str, float]] = []


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what the body does, as in `building the model`. Members that wait for this one are told, and do not give up.

    Local, under a microsecond; counts in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _current.append((what, time.monotonic()))
    try:
        yield
    finally:
        _current.pop()


def what_it_does() -> tuple[str, float] | None:
    """Return what the main thread is doing and for how many seconds, None where it did not say. Local, any thread."""
    try:
        what, since = _current[-1]
    except IndexError:
        return None
    return what, time.monotonic() - since
