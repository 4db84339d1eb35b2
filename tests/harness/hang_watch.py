"""A thread on each rank that ends a test which hangs, with the stacks of every rank."""

import faulthandler
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# How long ranks have to come to the end of a test that failed on another one.
PATIENCE_SECONDS = 10.0
# How long a rank that gives up waits for the others to print theirs: the launcher kills them when it leaves.
_GRACE_SECONDS = 3.0
_POLL_SECONDS = 0.5
# Should the thread itself not get to run, because native code keeps the interpreter's lock.
_LAST_RESORT_SECONDS = 10.0

# Process groups that the test has running, to end with it.
started_programs: set[int] = set()


class HangWatch:
    """Watches over one test at a time."""

    def __init__(self, who: str, run_id: int, config: pytest.Config) -> None:
        self._who = who
        self._config = config
        self._stderr = os.dup(2)  # before pytest captures it
        # A rank that failed and waits for the others raises this flag, and their watches see it.
        self._flag = Path(tempfile.gettempdir()) / f"hpcvol-tests-{run_id}-waiting"
        self._failure: str | None = None
        self._what = ""
        self._seconds = 0.0
        self._started: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hang watch", daemon=True)
        self._thread.start()

    @contextmanager
    def watching(self, what: str, seconds: float) -> Iterator[None]:
        """End the process, and with it the run, should the body take longer than `seconds`."""
        self._what, self._seconds, self._started = what, seconds, time.monotonic()
        faulthandler.dump_traceback_later(seconds + _LAST_RESORT_SECONDS, exit=True, file=self._stderr)
        try:
            yield
        finally:
            self._started = None
            faulthandler.cancel_dump_traceback_later()

    def expect_the_others(self, failure: str) -> None:
        """Give all ranks `PATIENCE_SECONDS` to get to `all_here`, or end the run and print `failure`."""
        self._failure = failure
        self._flag.touch()

    def all_here(self) -> None:
        """Take the flag down: the other ranks are here."""
        if self._failure is not None:
            self._flag.unlink(missing_ok=True)
            self._failure = None

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()
        os.close(self._stderr)

    def _run(self) -> None:
        flagged_at: float | None = None
        while not self._closed.wait(_POLL_SECONDS):
            now = time.monotonic()
            if not self._flag.exists():
                flagged_at = None
            elif flagged_at is None:
                flagged_at = now
            if self._started is not None and now > self._started + self._seconds:
                self._give_up(f"has not ended after {self._seconds:g} s")
            if self._started is not None and flagged_at is not None and now > flagged_at + PATIENCE_SECONDS:
                self._give_up(f"the others did not come within {PATIENCE_SECONDS:g} s of a failure on one rank")

    def _give_up(self, why: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:  # the ranks that do not report have none
            reporter.flush()
        said = f"{why}\nthis rank {self._failure}" if self._failure is not None else why
        os.write(self._stderr, f"\n=== {self._who}: {self._what}: {said}\n".encode())
        faulthandler.dump_traceback(self._stderr, all_threads=True)
        time.sleep(_GRACE_SECONDS)
        for program in started_programs:
            os.killpg(program, signal.SIGTERM)
        self._flag.unlink(missing_ok=True)
        os._exit(1)
