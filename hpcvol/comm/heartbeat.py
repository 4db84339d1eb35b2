"""A thread in which MPI sends its heartbeats while this member computes.

Open MPI's detector has a thread of its own for that (`mpi_ft_detector_thread`), which now and then takes a process down
as it starts (3 of 8 starts of 8 ranks on 3 virtual hosts), and with which MPI_Finalize hangs. Without it heartbeats go
out, and silence is noticed, whenever a process is inside of MPI: here it is, for a moment, several times a period.

Code that holds Python's lock for long keeps this thread from running, too.
"""

import threading

_TIMES_A_PERIOD = 4

_heartbeat: "Heartbeat | None" = None


def start(period_seconds: float) -> None:
    """Begin. Local; MPI has been started, and takes calls from several threads.

    Args:
        period_seconds: of the detector.
    """
    global _heartbeat
    if _heartbeat is None:
        _heartbeat = Heartbeat(period_seconds / _TIMES_A_PERIOD)


def stop() -> None:
    """End the thread: MPI is about to be finalised. Local."""
    global _heartbeat
    if _heartbeat is not None:
        _heartbeat.close()
        _heartbeat = None


class Heartbeat:
    """Lets MPI work every `seconds`, until it is closed. Local."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hpcvol-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        from mpi4py import MPI

        while not self._closed.wait(self._seconds):
            MPI.COMM_SELF.Iprobe()  # which nobody can revoke
