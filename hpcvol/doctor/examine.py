"""The whole examination of one host: all checks at once, since most of their time is other programs starting."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from hpcvol.doctor.compute import check_compute, check_kernels
from hpcvol.doctor.finding import Finding, note
from hpcvol.doctor.memory import check_memory
from hpcvol.doctor.mpi import check_mpi
from hpcvol.doctor.network import check_network
from hpcvol.doctor.slurm import check_slurm
from hpcvol.doctor.storage import check_storage

Check = Callable[[], Iterable[Finding]]
CHECKS: tuple[Check, ...] = (
    check_mpi,
    check_slurm,
    check_network,
    check_memory,
    check_storage,
    check_compute,
    check_kernels,
)


def examine(checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """Return all findings about this host, in the order of the checks. Local; all that it starts has a limit."""
    checks = tuple(checks)
    with ThreadPoolExecutor(len(checks), "hpcvol-doctor") as threads:
        return [finding for findings in threads.map(_carefully, checks) for finding in findings]


def _carefully(check: Check) -> list[Finding]:
    """Run a check; one that this machine is too strange for must not keep the others from being heard."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except Exception as error:
        findings.append(note("doctor", check.__name__, f"could not be finished: {type(error).__name__}: {error}"))
    return findings
