"""`python -m hpcvol.comm.mpi_probe`: what the MPI of this environment is and can do, as lines of JSON.

Run in a process of its own: an MPI may end the process that starts it, on a login node for example. Each line is there
before the next thing is tried, so that the lines tell how far it came. With the argument `fault` and two
ranks, rank 1 kills itself and rank 0 says what it hears of that.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import mpi4py

_THREADS = ("single", "funneled", "serialized", "multiple")


def main() -> None:
    """Print the lines."""
    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    path = _library_path()
    _tell(version=MPI.Get_library_version().strip("\0 \n").splitlines()[0], path=path, standard=MPI.Get_version())
    provided = MPI.Init_thread(MPI.THREAD_MULTIPLE)
    levels = (MPI.THREAD_SINGLE, MPI.THREAD_FUNNELED, MPI.THREAD_SERIALIZED, MPI.THREAD_MULTIPLE)
    _tell(threads=_THREADS[levels.index(provided)], size=MPI.COMM_WORLD.Get_size())
    _tell(fault_tolerance=_has_fault_tolerance(), cuda=_knows_cuda(path))
    if sys.argv[1:] == ["fault"]:
        _tell(heard=_hear_of_a_fault())
        os._exit(0)  # MPI_Finalize after a failure may wait for the dead
    MPI.Finalize()


def _tell(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _library_path() -> str | None:
    """Return which libmpi the process has mapped."""
    mapped = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    return min((path for path in mapped if Path(path).name.startswith("libmpi")), key=len, default=None)


def _has_fault_tolerance() -> bool:
    """Whether the library has the calls of ULFM (MPI_Comm_revoke and its kin)."""
    from mpi4py import MPI

    try:
        MPI.COMM_WORLD.Is_revoked()
    except (NotImplementedError, MPI.Exception):
        return False
    return True


def _knows_cuda(path: str | None) -> bool | None:
    """Whether the library takes GPU memory; None where it does not say."""
    if path is None:
        return None
    try:
        return bool(ctypes.CDLL(path).MPIX_Query_cuda_support())
    except (OSError, AttributeError):
        return None


def _hear_of_a_fault() -> str:
    """Let rank 1 die while rank 0 waits for a message of it; return the error that rank 0 gets."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD.Dup()
    world.Set_errhandler(MPI.ERRORS_RETURN)
    world.Barrier()
    if world.Get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        world.recv(source=1)
    except MPI.Exception as error:
        return str(error)
    return "a message of the dead"


if __name__ == "__main__":
    main()
