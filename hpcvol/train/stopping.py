"""Stopping by request: a signal asks. The run stops after the step at hand, with a checkpoint, or one member leaves."""

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)

# Whoever ends a whole job sends SIGTERM to all of its processes: how long one waits for the others to have it too.
_ALL_SECONDS = 1.0


class StopRequest:
    """Whether this process was asked to stop, by SIGUSR1 or SIGINT, or to end, by SIGTERM. A second SIGINT interrupts.

    Use as a context manager; signals have their former meaning afterwards.

    Attributes:
        requested: whether the run is to stop.
        ends: whether this process is to end, the run with it where all are.
    """

    def __init__(self) -> None:
        self.requested = False
        self.ends = False
        self._asked_to_end = 0.0

    def __enter__(self) -> "StopRequest":
        self._former = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # one that came while the process started is heard now
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @property
    def ends_alone(self) -> bool:
        """Whether this process is to end and enough time has passed for all others to have said so, were they too."""
        return self.ends and time.monotonic() - self._asked_to_end > _ALL_SECONDS

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM:
            if not self.ends:
                self._asked_to_end = time.monotonic()
            self.ends = True
            return
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
