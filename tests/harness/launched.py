"""Running programs from a test, on one rank or several. Only in tests of one process: ranks launch no ranks."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

import pytest
from hang_watch import started_programs

from hpcvol import environment
from hpcvol.comm import launch_command, under_launcher

LIMIT_SECONDS = 50.0
_GRACE_SECONDS = 5.0


class RunProgram(Protocol):
    def __call__(
        self, argv: Sequence[str], *, variables: Mapping[str, str] = ..., seconds: float = ...
    ) -> subprocess.CompletedProcess[str]: ...


class RunRanks(Protocol):
    def __call__(
        self, num_ranks: int, argv: Sequence[str], *, variables: Mapping[str, str] = ..., seconds: float = ...
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run_program() -> RunProgram:
    """Run `argv` to its end, with `variables` on top of the environment; fail, killing it, after `seconds`."""
    return _run


@pytest.fixture
def run_ranks() -> RunRanks:
    """Run `argv` on `num_ranks` ranks of this environment's MPI. `argv` may start with a `.py` file or `-c` or `-m`."""

    def run(
        num_ranks: int,
        argv: Sequence[str],
        *,
        variables: Mapping[str, str] | None = None,
        seconds: float = LIMIT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        launch = launch_command(num_ranks, [sys.executable, *argv])
        return _run(launch.argv, variables={**launch.environment, **(variables or {})}, seconds=seconds)

    return run


def _run(
    argv: Sequence[str], *, variables: Mapping[str, str] | None = None, seconds: float = LIMIT_SECONDS
) -> subprocess.CompletedProcess[str]:
    assert not under_launcher(), "a rank cannot launch ranks: such tests carry no `group` and no mark `mpi`"
    # An explicit environment: MPI in this process adds variables behind Python's back, which would confuse a launcher.
    env = {**environment.snapshot(), **(variables or {})}
    with subprocess.Popen(
        argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        started_programs.add(process.pid)
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            stdout, stderr = _stop(process)
            pytest.fail(f"{argv} has not ended after {seconds:g} s\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
        except BaseException:
            _stop(process)
            raise
        finally:
            started_programs.discard(process.pid)
    return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)


def _stop(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End `process` with its ranks, which a launcher sees to if it is asked and not killed; return what it wrote."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()
