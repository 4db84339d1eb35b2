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
from pathlib import Path

_STEP = ["--overlap", "--no-kill", "-K0", "-W0", "-N1", "-n1", "--mpi=none"]
_OPTIONS_WITH_VALUE = ("-l", "-p", "-o", "-i")


def main() -> int:
    """Start the daemon, wait for its end, and return the status for mpiexec."""
    shell, *words = sys.argv[1:]
    status = subprocess.run(_as_step(words) if shell == "srun" else [shell, *words], check=False).returncode
    return 0 if _ranks_run(os.getppid()) else abs(status)


def _as_step(words: list[str]) -> list[str]:
    while words and words[0].startswith("-"):
        words = words[2 if words[0] in _OPTIONS_WITH_VALUE else 1 :]
    host, *command = words
    return ["srun", *_STEP, "-w", host, "/bin/bash", "-c", " ".join(command)]


def _ranks_run(launcher: int) -> bool:
    """Return whether the launcher has started more than agents such as this: it does when all daemons are there."""
    return any(not _is_agent(child) for child in _children(launcher))


def _children(process: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def _is_agent(process: int) -> bool:
    try:
        return Path(__file__).name in Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return True


if __name__ == "__main__":
    sys.exit(main())
