"""One job at a time in a thread of its own, whose error waits until somebody takes it."""

import threading
from collections.abc import Callable


class Background:
    """Runs jobs behind the caller's back, one after the other.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether a job failed and nobody has taken its error."""
        return self._error is not None

    def start(self, job: Callable[[], None]) -> None:
        """Begin `job`; first wait for the one before.

        Raises:
            BaseException: what the one before raised; then `job` is not begun.
        """
        self.wait()
        # A daemon: a second Ctrl-C ends the process at once, whatever is being written.
        self._thread = threading.Thread(target=self._run, args=(job,), name=self._name, daemon=True)
        self._thread.start()

    def fail(self, error: BaseException) -> None:
        """Keep `error` as if a job had raised it."""
        self._error = error

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the end of the job, at most `seconds`.

        Raises:
            BaseException: what it raised; once.
        """
        if self._thread is not None:
            self._thread.join(seconds)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error
