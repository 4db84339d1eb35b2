"""Whether ranks of this MPI outlive the death of others."""

from hpcvol import environment

# Open MPI tells its ranks by this variable that mpiexec was given `--with-ft ulfm`.
_TOLERANT = "OMPI_MCA_mpi_ft_enable"


def survives_failures() -> bool:
    """Return whether this MPI was started so that ranks outlive the death of others (ULFM). Local."""
    return (environment.variable(_TOLERANT) or "0").lower() in ("1", "true", "yes")
