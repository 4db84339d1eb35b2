"""A process that was to join and dies before it has said who it is: the one that spawned it must not wait for it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from hpcvol.comm import newcomer
from hpcvol.comm.newcomer import Newcomer
from hpcvol.comm.processes import Process, started_with

# What its process does before it writes to the board.
SILENT = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_a_process_is_found_by_its_arguments() -> None:
    arguments = [str(os.getpid()), "found", "by these"]
    with subprocess.Popen([*SILENT, *arguments]) as process:
        while (found := started_with(arguments)) is None:  # until it has become that program
            time.sleep(0.01)
        process.kill()
    assert found.pid == process.pid
    assert not found.alive()
    assert started_with(arguments) is None


@pytest.mark.limit_seconds(30)
def test_the_starter_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, seen, ended = [str(os.getpid()), "guarded"], threading.Event(), threading.Event()
    starter: Any = Newcomer.__new__(Newcomer)
    starter._board, starter._began, starter._arguments = os.memfd_create("board"), time.monotonic(), arguments
    os.ftruncate(starter._board, newcomer._NBYTES)

    def look(wanted: Sequence[str]) -> Process | None:
        found = started_with(wanted)
        if found is not None:
            seen.set()
        return found

    class Me:
        kill = ended.set

    monkeypatch.setattr(newcomer, "started_with", look)
    monkeypatch.setattr(newcomer.Process, "current", Me)
    spawned = threading.Event()
    guard = threading.Thread(target=starter._guard, args=(spawned,), daemon=True)
    with subprocess.Popen([*SILENT, *arguments]) as process:
        guard.start()
        assert seen.wait(20)
        process.kill()
    assert ended.wait(20)  # a third of the time after which it would give up on one that it has not seen
    spawned.set()
    guard.join()
    os.close(starter._board)
