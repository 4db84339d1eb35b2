"""Run the whole suite with the MPI of this environment: `python tests/run.py [--with-ft=ulfm] [pytest arguments]`.

First what fits one process, then, on four ranks, what takes ranks. The exit status is not 0 if either fails. With
`--with-ft=ulfm` Open MPI lets those ranks outlive the death of others.
"""

import subprocess
import sys
from pathlib import Path

from hpcvol import environment
from hpcvol.comm import launch_command

NUM_RANKS = 4
OUTLIVING = "--with-ft=ulfm"
NO_TESTS_COLLECTED = 5  # by pytest; one of the two runs may have nothing to do

# What the suite's time goes to is shown at its end.
SLOWEST = ("--durations=40", "--durations-min=2")

VARIABLES = {
    "OMP_NUM_THREADS": "1",  # four ranks on two cores: one thread each
    "PYTHONDONTWRITEBYTECODE": "",  # of the hundreds of processes, not each compiles the same sources
}

SHARED_MEMORY = Path("/dev/shm")


def segments() -> set[Path]:
    """Return the shared memory of MPI libraries: Open MPI's and MPICH's segments."""
    return {path for pattern in ("sm_segment.*", "mpich_shm_*") for path in SHARED_MEMORY.glob(pattern)}


def remove_leftovers(before: set[Path]) -> None:
    """Remove segments that came since `before` and that nobody maps: ranks that tests killed could not."""
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped += maps.read_text()
        except OSError:
            continue  # it ended, or is another user's
    for path in segments() - before:
        if str(path) not in mapped:
            path.unlink(missing_ok=True)


def main() -> int:
    """Run both halves, leave no shared memory behind, and return the exit status."""
    before = segments()
    try:
        return run()
    finally:
        remove_leftovers(before)


def run() -> int:
    """Run both halves and return the exit status."""
    outliving = ["--with-ft", "ulfm"] if OUTLIVING in sys.argv else []
    chosen = [argument for argument in sys.argv[1:] if argument != OUTLIVING]
    pytest = [sys.executable, "-m", "pytest", f"--color={'yes' if sys.stdout.isatty() else 'no'}", *chosen]
    variables = {**environment.snapshot(), **VARIABLES}
    print(f"# one process: {' '.join(pytest)}", flush=True)
    alone = subprocess.run([*pytest, *SLOWEST], env=variables, check=False).returncode
    launch = launch_command(NUM_RANKS, [*pytest, "-p", "no:cacheprovider"])
    argv = [launch.argv[0], *outliving, *launch.argv[1:]]
    print(f"# {NUM_RANKS} ranks: {' '.join(argv)}  ({launch.note})", flush=True)
    ranks = subprocess.run(argv, env={**variables, **launch.environment}, check=False).returncode
    if alone == ranks == NO_TESTS_COLLECTED:
        return NO_TESTS_COLLECTED
    return 0 if {alone, ranks} <= {0, NO_TESTS_COLLECTED} else 1


if __name__ == "__main__":
    sys.exit(main())
