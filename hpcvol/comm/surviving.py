"""Whether ranks of this MPI outlive the death of others, and notice it of hosts that fall silent."""

from hpcvol import environment

# Open MPI tells its ranks by these variables that mpiexec was given `--with-ft ulfm`, and the detector's flags.
_TOLERANT = "OMPI_MCA_mpi_ft_enable"
_DETECTS = "OMPI_MCA_mpi_ft_detector"
_PERIOD = "OMPI_MCA_mpi_ft_detector_period"
_DEFAULT_PERIOD_SECONDS = 3.0
# Heartbeats in the time after which their absence means death.
_BEATS = 5


def survives_failures() -> bool:
    """Return whether this MPI was started so that ranks outlive the death of others (ULFM). Local."""
    return _is_on(_TOLERANT)


def detector_period_seconds() -> float | None:
    """Return how often the members send each other heartbeats; None where they do not. Local."""
    if not survives_failures() or not _is_on(_DETECTS):
        return None
    return float(environment.variable(_PERIOD) or _DEFAULT_PERIOD_SECONDS)


def flags_to_survive(detect_seconds: float | None) -> list[str]:
    """Return what mpiexec of Open MPI is given so that ranks outlive the death of others. Pure.

    Args:
        detect_seconds: a member that was silent for so long counts as dead; None where all are on the launcher's host,
            which notices every death at once, and where a silent one can be waited for.
    """
    flags = ["--with-ft", "ulfm"]
    if detect_seconds is None:
        return flags
    parameters = {
        "mpi_ft_detector": "1",
        "mpi_ft_detector_period": f"{detect_seconds / _BEATS:g}",
        "mpi_ft_detector_timeout": f"{detect_seconds:g}",
        "mpi_ft_propagator_with_rbcast": "1",  # else those that are left may not agree on who is
    }
    # Each rank watches the one before it. Of those of a lost host that follow each other one after the other would be
    # noticed (two a host: 3.0 s after the cut, not 1.0, where silence means death after 1 s).
    flags += ["--rank-by", "node"]
    return [*flags, *(word for name, value in parameters.items() for word in ("--mca", name, value))]


def _is_on(name: str) -> bool:
    return (environment.variable(name) or "0").lower() in ("1", "true", "yes")
