"""Who started this process: what the environment says of `mpiexec`, `srun` and their kin. Local; loads no MPI."""

import re
from dataclasses import dataclass

from hpcvol import environment

OPEN_MPI = "Open MPI"
MPICH = "MPICH"

# Slurm numbers the batch script and the shell of `salloc` like steps, but nobody launched ranks there (slurm.h).
_FIRST_SLURM_STEP_WITHOUT_RANKS = 0xFFFFFFF0


@dataclass(frozen=True)
class Launcher:
    """A program that started this process as one of several.

    Attributes:
        name: what to call it in a message.
        vendor: the MPI it belongs to, `OPEN_MPI` or `MPICH`; None for one that can serve several, such as srun.
        num_ranks: how many processes it started together, None where it does not say.
        rank: which of them this is.
    """

    name: str
    vendor: str | None
    num_ranks: int | None
    rank: int


def vendor_of(version: str) -> str | None:
    """Return the family that an MPI library or its mpiexec belongs to by its version text, None where unknown.

    The family is what launcher and library have to share: MPICH's descendants start each other's programs.
    """
    text = version.lower()
    if "open mpi" in text or "openmpi" in text or "openrte" in text or "prrte" in text:
        return OPEN_MPI
    if any(name in text for name in ("mpich", "hydra", "intel(r) mpi", "cray mpi")):
        return MPICH
    return None


def library_name(version: str) -> str:
    """Return name and number out of what MPI_Get_library_version says, such as `Open MPI v5.0.11`."""
    line = version.strip("\0 \n").splitlines()[0]
    return " ".join(line.split(",")[0].replace("Version:", "").split())


def launcher(library: str | None = None) -> Launcher | None:
    """Return what started this process, None where nothing did.

    Args:
        library: the vendor of the loaded MPI. Where launchers are nested their variables stand side by side, and the
            launcher of this vendor is the one that counts.
    """
    found = [one for one in (_open_mpi(), _hydra(), _srun(), _pmi(), _pmix()) if one is not None]
    same = [one for one in found if library is not None and one.vendor == library]
    return next(iter(same + found), None)


def under_launcher() -> bool:
    """Return whether this process was started by mpiexec, or by srun as one of several, and so is a rank already."""
    by = launcher()
    return by is not None and (by.name != "srun" or by.num_ranks != 1)


def launching_host() -> str | None:
    """Return the name of the host that Open MPI's mpiexec runs on, whose daemons end without it; else None. Local."""
    job = re.fullmatch(r"prterun-(.+)-\d+@\d+", environment.variable("PMIX_NAMESPACE") or "")
    return None if job is None else job[1]


def _open_mpi() -> Launcher | None:
    size = environment.variable("OMPI_COMM_WORLD_SIZE")
    return None if size is None else Launcher("mpiexec of Open MPI", OPEN_MPI, int(size), _int("OMPI_COMM_WORLD_RANK"))


def _hydra() -> Launcher | None:
    size = environment.variable("PMI_SIZE")
    # srun has the first too; inside a Slurm job, where srun starts the proxies of mpiexec, there is only the last.
    if size is None or not any(environment.variable(name) for name in ("HYDI_CONTROL_FD", "MPI_LOCALNRANKS")):
        return None
    return Launcher("mpiexec of MPICH", MPICH, int(size), _int("PMI_RANK"))


def _srun() -> Launcher | None:
    # Not SLURM_NTASKS: a batch script has it too, and a plain `python x.py` there is a legal run of one rank.
    step, size = environment.variable("SLURM_STEP_ID"), environment.variable("SLURM_STEP_NUM_TASKS")
    if step is None or size is None or int(step) >= _FIRST_SLURM_STEP_WITHOUT_RANKS:
        return None
    return Launcher("srun", None, int(size), _int("SLURM_PROCID"))


def _pmi() -> Launcher | None:
    size = environment.variable("PMI_SIZE")
    return None if size is None else Launcher("a PMI launcher", None, int(size), _int("PMI_RANK"))


def _pmix() -> Launcher | None:
    rank = environment.variable("PMIX_RANK")
    if rank is None:
        return None
    # PMIx tells the size to the library only. Any rank but the first proves that there is more than one.
    return Launcher("a PMIx launcher", None, int(rank) + 1 if int(rank) > 0 else None, int(rank))


def _int(name: str) -> int:
    return int(environment.variable(name) or 0)
