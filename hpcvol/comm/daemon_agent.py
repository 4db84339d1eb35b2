"""What starts the daemon of Open MPI's mpiexec on another host, such that the run can outlive that host.

    python daemon_agent.py ssh [OPTIONS] HOST COMMAND...       python daemon_agent.py srun [OPTIONS] HOST COMMAND...

mpiexec takes a failure of what started a daemon for a failure of the run, as also when the host is lost hours later. So
this ends well once the ranks run, however its daemon ended; before that a failure is one: no rank would ever start.
Under Slurm each daemon is a step of its own, for Slurm ends a step that loses a node. Runs by itself: imports nothing
of hpcvol.
"""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

# The ranks of a host are all in its daemon's step: it takes the cores and the memory that the job has there.
_STEP = ["--overlap", "--no-kill", "-K0", "-W0", "-N1", "-n1", "--mpi=none", "--cpu-bind=none", "--mem=0"]
_OPTIONS_WITH_VALUE = ("-l", "-p", "-o", "-i")
_LOOK_SECONDS = 0.5


def main() -> int:
    """Start the daemon, wait for its end, and return the status for mpiexec."""
    shell, *words = sys.argv[1:]
    launcher = os.getppid()
    daemon = subprocess.Popen(_as_step(words) if shell == "srun" else [shell, *words])
    # Looked at while the daemon runs: at its end the launcher's own ranks may have ended, or been lost, already.
    while not _ranks_run(launcher):
        with suppress(subprocess.TimeoutExpired):
            status = daemon.wait(_LOOK_SECONDS)
            return 0 if _ranks_run(launcher) else abs(status)
    daemon.wait()
    return 0


def _as_step(words: list[str]) -> list[str]:
    while words and words[0].startswith("-"):
        words = words[2 if words[0] in _OPTIONS_WITH_VALUE else 1 :]
    host, *command = words
    return ["srun", *_STEP, "-w", host, "/bin/bash", "-c", " ".join(command)]


def _ranks_run(launcher: int) -> bool:
    """Return whether the launcher has started more than agents such as this: it does when all daemons are there."""
    # Just forked, a child still has the launcher's own command line; when it has ended it has none.
    none_yet = "", _command_line(launcher)
    lines = map(_command_line, _children(launcher))
    return any(line not in none_yet and Path(__file__).name not in line for line in lines)


def _children(process: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
