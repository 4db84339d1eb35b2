"""Ctrl-C under `hpcvol train`: the first asks for a checkpoint, the second ends everything.

A Python program stands for mpiexec: it starts a "rank" in a process group of its own, as Open MPI does, and both say
which signals they get. Every wait is for a line of theirs.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest

SUPERVISOR = """
import os, sys
from hpcvol import environment
from hpcvol.cli import supervision
from hpcvol.cli.supervision import supervise
supervision._ENDED_SECONDS = 1.0
ended = lambda: os.path.exists("ended")
print(supervise([sys.executable, "-c", *sys.argv[1:]], environment.snapshot(), ended), flush=True)
"""

RANK = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("rank", os.getpid(), flush=True)
while True: signal.pause()
"""

LAUNCHER = """
import os, signal, subprocess, sys
def on_usr1(*_):
    print("launcher got USR1", flush=True)
    if sys.argv[2] == "stops": os._exit(7)
signal.signal(signal.SIGUSR1, on_usr1)
signal.signal(signal.SIGINT, lambda *_: print("launcher got INT", flush=True))
subprocess.Popen([sys.executable, "-c", sys.argv[1]], process_group=0) if sys.argv[2] == "goes on" else None
subprocess.Popen(["sleep", "3"]) if sys.argv[2] == "misses an end" else None
subprocess.Popen(["sleep", "100"]) if sys.argv[2] == "lost a host" else None
print("launcher", os.getsid(0) == os.getpid(), flush=True)
while True: signal.pause()
"""


@contextmanager
def supervised(behaviour: str) -> Iterator[subprocess.Popen[str]]:
    """Start the supervisor over the stand-in; end both, whatever happened."""
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, LAUNCHER, RANK, behaviour],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        family = psutil.Process(process.pid)
        try:
            yield process
        finally:
            for one in [*family.children(recursive=True), family] if family.is_running() else []:
                one.kill()


def until(output: IO[str] | None, beginning: str) -> str:
    assert output is not None
    seen = []
    for line in output:
        seen.append(line)
        if line.startswith(beginning):
            return line.removeprefix(beginning).strip()
    pytest.fail(f"no line begins with {beginning!r}: {seen}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_the_first_signal_asks_the_launcher_to_stop(number: signal.Signals) -> None:
    with supervised("stops") as process:
        assert until(process.stdout, "launcher ") == "True"  # a session of its own, out of reach of the terminal
        os.killpg(process.pid, number)  # as a terminal does: to the whole group
        assert until(process.stdout, "launcher got ") == "USR1"
        assert until(process.stdout, "Ending") == "(status=7, stopped=True, outlived=False)"


def test_the_second_signal_ends_all_even_what_ignores_requests() -> None:
    with supervised("goes on") as process:
        rank = psutil.Process(int(until(process.stdout, "rank ")))
        process.send_signal(signal.SIGINT)
        assert until(process.stdout, "launcher got ") == "USR1"
        process.send_signal(signal.SIGINT)
        assert until(process.stdout, "Ending") == f"(status={-signal.SIGTERM}, stopped=True, outlived=False)"
        assert process.wait() == 0
        psutil.wait_procs([rank], timeout=10)
        assert not rank.is_running()


def test_requests_of_a_job_script_do_not_add_up_to_an_end() -> None:
    """Slurm and the job script may both ask, and ask again: only interrupts count."""
    with supervised("goes on") as process:
        rank = psutil.Process(int(until(process.stdout, "rank ")))
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
            process.send_signal(number)
        assert until(process.stdout, "launcher got ") == "USR1"
        process.send_signal(signal.SIGUSR1)
        assert rank.is_running()
        # A signal that comes before the one before was looked at is one with it; a third changes nothing.
        for _ in range(4):
            process.send_signal(signal.SIGTERM)
            if select.select([process.stdout], [], [], 10.0)[0]:
                break
        assert until(process.stdout, "Ending") == f"(status={-signal.SIGTERM}, stopped=True, outlived=False)"


def test_without_a_signal_the_status_is_the_launchers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR, "import sys; print('in:', sys.stdin.read()); sys.exit(5)"],
        capture_output=True,
        text=True,
        input="not for the ranks",
        check=True,
    )
    assert done.stdout == "in: \nEnding(status=5, stopped=False, outlived=False)\n"


def test_a_launcher_that_misses_the_end_of_its_ranks_is_ended() -> None:
    """As Open MPI's does now and then; here the rank stays a zombie."""
    with supervised("misses an end") as process:
        assert until(process.stdout, "Ending") == f"(status={-signal.SIGKILL}, stopped=False, outlived=True)"


def test_a_launcher_that_waits_for_a_lost_host_is_ended_when_the_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with supervised("lost a host") as process:
        assert until(process.stdout, "launcher ") == "True"
        process.send_signal(signal.SIGUSR1)
        assert until(process.stdout, "launcher got ") == "USR1"
        (tmp_path / "ended").touch()
        assert until(process.stdout, "Ending") == f"(status={-signal.SIGTERM}, stopped=True, outlived=True)"
