"""Shared memory, and the limits that the system sets to a process."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from hpcvol.doctor.finding import Finding, note, ok, wrong

_TOPIC = "memory"
_MIB = 2**20
# What containers give by default. An MPI library's segments are some MiB a rank, and a full /dev/shm kills a process
# with SIGBUS when it touches what it was promised.
_TOO_SMALL = 64 * _MIB
_SMALL = 256 * _MIB


def check_memory() -> Iterator[Finding]:
    """Yield what there is to say of shared memory and of limits."""
    yield shared_memory(Path("/dev/shm"))
    yield from limits(has_infiniband=_has_infiniband())
    yield cgroup(Path("/sys/fs/cgroup/memory.max"))


def shared_memory(folder: Path) -> Finding:
    """Judge the file system of shared memory at `folder`."""
    try:
        total, _, free = shutil.disk_usage(folder)
    except OSError as error:
        return wrong(
            _TOPIC, "/dev/shm", f"{error.strerror}", "mount -t tmpfs tmpfs /dev/shm, or ask who runs this host"
        )
    found = f"{total // _MIB} MiB, {free // _MIB} MiB free"
    remedy = "start the container with more: docker run --shm-size=8g, or --ipc=host; Apptainer takes the host's"
    if total <= _TOO_SMALL:
        return wrong(_TOPIC, "/dev/shm", f"{found}: ranks of one host will die of SIGBUS", remedy)
    if free < _TOO_SMALL:
        return wrong(_TOPIC, "/dev/shm", f"{found}: it is full", "ls -l /dev/shm, and remove what nobody uses any more")
    return (
        note(_TOPIC, "/dev/shm", f"{found}: little for many ranks", remedy)
        if free < _SMALL
        else ok(_TOPIC, "/dev/shm", found)
    )


def limits(*, has_infiniband: bool) -> Iterator[Finding]:
    """Judge the limits of this process (`ulimit`)."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= files < 1024:
        yield note(_TOPIC, "open files", f"{files}: each shard of a dataset takes one", "ulimit -n 4096")
    else:
        yield ok(_TOPIC, "open files", "unlimited" if files < 0 else str(files))
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if has_infiniband and locked != resource.RLIM_INFINITY:
        yield wrong(
            _TOPIC,
            "locked memory",
            f"{locked // 1024} KiB: InfiniBand needs to lock what it sends",
            "ulimit -l unlimited; in Slurm jobs the administrator sets LimitMEMLOCK=infinity for slurmd",
        )
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        yield note(
            _TOPIC,
            "address space",
            f"{address_space // _MIB} MiB: mapped datasets and torch count in full",
            "ulimit -v unlimited",
        )


def cgroup(path: Path) -> Finding:
    """Judge how much memory the process may use, as the file of its control group says."""
    try:
        limit = path.read_text().strip()
    except OSError:
        limit = "max"
    if limit == "max":
        pages = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
        return ok(_TOPIC, "memory", f"{pages['MemTotal'] // 1024} MiB, {pages['MemAvailable'] // 1024} MiB available")
    found = f"{int(limit) // _MIB} MiB by its control group"
    if int(limit) < 1024 * _MIB:
        return note(_TOPIC, "memory", f"{found}: a rank needs about 400 MiB for torch alone", "sbatch --mem-per-cpu=2G")
    return ok(_TOPIC, "memory", found)


def _has_infiniband() -> bool:
    folder = Path("/sys/class/infiniband")
    return folder.is_dir() and any(folder.iterdir())
