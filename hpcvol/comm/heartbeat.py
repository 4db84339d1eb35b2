"""A thread in which MPI sends its heartbeats while this member computes.

Open MPI's detector has a thread of its own for that (`mpi_ft_detector_thread`), which now and then takes a process down
as it starts (3 of 8 starts of 8 ranks on 3 virtual hosts), and with which MPI_Finalize hangs. Without it heartbeats go
out, and silence is noticed, whenever a process is inside of MPI: here it is, for a moment, several times a period.

The thread never needs Python's lock, which a process may hold for seconds, as when it loads a large library.
"""

import ctypes
import threading
from typing import Any

import numpy as np

_TIMES_A_PERIOD = 4
_MOST_PAUSE_MICROSECONDS = 500_000
_STATUS_NBYTES = 256  # more than that of any MPI

_heartbeat: "Heartbeat | None" = None


def warm_up() -> None:
    """Have what a heartbeat needs loaded and compiled. Local, before MPI is started: from then on others listen."""
    from hpcvol.kernels.calling import call_until

    call_until(np.ones(1, np.int64), 0, np.zeros(5, np.int64), 0, 0)


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
        self._stop = np.zeros(1, np.int64)
        self._pause = min(int(seconds * 1e6), _MOST_PAUSE_MICROSECONDS)
        self._thread = threading.Thread(target=self._run, name="hpcvol-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop[0] = 1
        self._thread.join()

    def _run(self) -> None:
        from mpi4py import MPI

        from hpcvol.kernels.calling import call_until

        # MPI_Iprobe(source, tag, comm, flag, status) of a communicator that nobody can revoke.
        flag, status = np.zeros(1, np.int64), np.zeros(_STATUS_NBYTES, np.uint8)
        myself = MPI._handleof(MPI.COMM_SELF)
        arguments = np.array([MPI.ANY_SOURCE, MPI.ANY_TAG, myself, flag.ctypes.data, status.ctypes.data], np.int64)
        probe, usleep = _address(ctypes.CDLL(MPI.__file__).MPI_Iprobe), _address(ctypes.CDLL(None).usleep)
        call_until(self._stop, probe, arguments, usleep, self._pause)


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
