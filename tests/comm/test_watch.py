"""Who is stuck: the report, the end after too long, and stacks on demand. Every fault is real, and seen to happen."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launched import RunRanks
from patience import until

from hpcvol import environment
from hpcvol.comm import launch_command

WARN = 1.5

START = f"""
import ctypes, os, re, signal, sys, threading, time
from hpcvol.comm import doing, set_patience, start
world = start()
set_patience({WARN}, ABORT)

def computes(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))

def say(text):
    sys.stdout.write(text + "\\n")
    sys.stdout.flush()
"""
END = "\nworld.barrier()\nsay(f'{world.rank} went on')\n"


def program(one: str, *, abort: float = 0, end: str = END) -> list[str]:
    """Return a program in which rank 1 does `one` while the others wait for it."""
    body = "".join(f"    {line}\n" for line in one.splitlines())
    return ["-c", START.replace("ABORT", str(abort)) + f"if world.rank == 1:\n{body}{end}"]


def reports(stderr: str) -> int:
    return stderr.count("hpcvol: warning: waiting for")


def test_nothing_is_said_of_members_that_come(run_ranks: RunRanks) -> None:
    ended = run_ranks(2, program("computes(0.7)"))
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("computes(4)", r"computes \(\d+ % of a processor lately\)"),
        ("time.sleep(4)", "stands still: it waits for a lock, another thread, a file, the network or a device"),
        # Native code that holds Python's lock, as a bad regular expression or a library without care does.
        ("re.match('(a+)+$', 'a' * 27 + 'b')", r"native code keeps Python's lock \(the GIL\) and computes .*"),
    ],
    ids=["computes", "stands still", "holds the lock"],
)
@pytest.mark.limit_seconds(220)
def test_a_late_member_is_named_with_what_it_does(run_ranks: RunRanks, does: str, said: str) -> None:
    # The regular expression takes 4 to 9 s of a processor, on a busy machine many times that.
    ended = run_ranks(3, program(f"def late():\n    {does}\nlate()"), seconds=200)
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.splitlines()) == ["0 went on", "1 went on", "2 went on"]
    assert reports(ended.stderr) == 1, ended.stderr  # one member speaks for those that wait
    assert re.search(r"waiting for \d+ s for member 1 \([^)]*\) in collective call 1, barrier\n", ended.stderr)
    assert re.search(r"member 0 \([^)]*\) and member 2 \([^)]*\) wait at <string>:\d+ <module>\n", ended.stderr)
    assert re.search(rf"member 1 \([^)]*\), process \d+, .*{said}\n", ended.stderr), ended.stderr
    assert "it has made no call of this group yet" in ended.stderr
    assert re.search(r" late$|in late$", ended.stderr, re.MULTILINE), ended.stderr  # the function, on its stack
    assert "kill -USR2 " in ended.stderr


def test_a_stopped_member_is_named_and_the_run_ends(run_ranks: RunRanks) -> None:
    ended = run_ranks(3, program("os.kill(os.getpid(), signal.SIGSTOP)", abort=4))
    assert ended.returncode != 0
    assert "0 went on" not in ended.stdout  # a launcher that ends the run lets a stopped process go on for a moment
    assert reports(ended.stderr) == 1
    assert ended.stderr.count("hpcvol: error: waited for ") == 1
    assert "that is longer than 4 s (comm.abort_seconds): ending the run" in ended.stderr
    stopped = re.findall(r"member 1 \([^)]*\), process (\d+), is stopped \(SIGSTOP.*`kill -CONT (\d+)`", ended.stderr)
    assert len(stopped) == 2  # once in the report, once at the end
    assert len({pid for pids in stopped for pid in pids}) == 1


def test_a_member_that_says_what_it_is_doing_is_not_called_stuck(run_ranks: RunRanks) -> None:
    ended = run_ranks(2, program("with doing('writing a checkpoint'): computes(4)", abort=3))
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(
        r"hpcvol: waiting for \d+ s: member 1 \([^)]*\) is writing a checkpoint, for \d+ s now "
        r"\(\d+ % of a processor lately\)\n",
        ended.stderr,
    )


def test_a_member_that_says_what_it_is_doing_and_stands_still_is_stuck(run_ranks: RunRanks) -> None:
    ended = run_ranks(2, program("with doing('writing a checkpoint'): time.sleep(1000)", abort=3))
    assert ended.returncode != 0
    assert "is writing a checkpoint, for " in ended.stderr
    assert "ending the run" in ended.stderr


def test_members_that_wait_for_each_other_are_told_apart_from_late_ones(run_ranks: RunRanks) -> None:
    ended = run_ranks(
        2, ["-c", START.replace("ABORT", "3") + "part = world.split(0)\n(world, part)[world.rank].barrier()"]
    )
    assert ended.returncode != 0
    assert reports(ended.stderr) == 1
    assert ended.stderr.count("they wait for each other in calls of different groups: a deadlock") == 2
    assert re.search(r"member 1 .* waits itself in barrier \(call 1 of a group of 2\), for member 0 ", ended.stderr)


INSIDE_MPI = """
import numpy
from hpcvol.comm.calls import Call
def inside_mpi(numel):
    vector = numpy.zeros(numel)
    world.calls.begin(Call.of("allreduce", vector.dtype, numel, "sum"))
    say("goes in")
    from mpi4py import MPI
    world.communicator.Allreduce(MPI.IN_PLACE, vector)
    world.calls.end()
"""


def test_who_waits_inside_the_mpi_library_is_freed_from_a_mismatch(run_ranks: RunRanks) -> None:
    other = "if world.rank == 0: inside_mpi(10)\nworld.barrier()"
    ended = run_ranks(2, ["-c", START.replace("ABORT", "0") + INSIDE_MPI + other])
    assert ended.returncode != 0
    assert ended.stdout == "goes in\n"
    assert "hpcvol: error: members disagree about collective call 1 of their group:" in ended.stderr
    assert re.search(r"member 0 \(.*\) calls allreduce sum float64\[10\] at <string>:\d+ inside_mpi\n", ended.stderr)
    assert re.search(r"member 1 \(.*\) calls barrier at <string>:\d+ <module>\n", ended.stderr)


SLOW_TO_RAISE = """
import numpy
from hpcvol.collectives import allreduce
from hpcvol.comm import calls
from hpcvol.errors import MismatchError
main = threading.main_thread()

def slowly(*_):
    if threading.current_thread() is main and world.rank == 0:
        say("slow")
        time.sleep(6)
    return "here"

def go_on():
    open(f"{sys.argv[1]}/{world.rank} went on", "w").close()
    until = time.monotonic() + 20
    while len(os.listdir(sys.argv[1])) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os._exit(0)
"""
AT_A_MEETING = "calls.Calls.here = slowly\none = lambda: world.any(True)\n"
IN_A_WAIT = "one = lambda: allreduce(world, numpy.zeros(5), 'sum', 'ring')\none()\ncalls.locate_with(slowly)\n"


@pytest.mark.parametrize("where", [AT_A_MEETING, IN_A_WAIT], ids=["at a meeting", "in a wait"])
def test_who_is_about_to_raise_gets_the_time_for_it(run_ranks: RunRanks, where: str, tmp_path: Path) -> None:
    """On a busy machine members take seconds to ask each other for their places: the watch is not to end them."""
    both = "try: (one, world.barrier)[world.rank]()\nexcept MismatchError: go_on()"
    ended = run_ranks(2, ["-c", START.replace("ABORT", "0") + SLOW_TO_RAISE + where + both, str(tmp_path)])
    assert "slow" in ended.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0 went on", "1 went on"], ended.stderr


def test_who_waits_inside_the_mpi_library_is_freed_from_one_that_left(run_ranks: RunRanks) -> None:
    script = "if world.rank == 1: sys.exit(0)\ninside_mpi(10)"
    ended = run_ranks(3, ["-c", START.replace("ABORT", "0") + INSIDE_MPI + script])
    assert ended.returncode != 0
    assert ended.stdout == "goes in\n" * 2
    assert ended.stderr.count("hpcvol: error: member 1 (") == 1
    assert "came to the end of its program while member 0 (" in ended.stderr


def test_a_wait_inside_the_mpi_library_ends_after_too_long(run_ranks: RunRanks) -> None:
    ended = run_ranks(2, program("time.sleep(1000)", abort=3, end=INSIDE_MPI + "inside_mpi(10)"))
    assert ended.returncode != 0
    assert ended.stdout == "goes in\n"
    assert "hpcvol: error: waited for " in ended.stderr
    assert "for member 1 (" in ended.stderr
    assert "in collective call 1, allreduce sum float64[10]" in ended.stderr


@contextmanager
def running(num_ranks: int, argv: list[str]) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """Start ranks, and collect what they write to stderr."""
    launch = launch_command(num_ranks, [sys.executable, *argv])
    env = {**environment.snapshot(), **launch.environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(launch.argv, env=env, text=True, start_new_session=True, **pipes) as process:
        said: list[str] = []
        assert process.stderr is not None
        reader = threading.Thread(target=lambda: said.extend(process.stderr or []))
        reader.start()
        try:
            yield process, said
        finally:
            with pytest.MonkeyPatch.context():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)
            reader.join()


WAITS_FOR_A_FILE = """
say(str(os.getpid()))
def named_function():
    while not os.path.exists(sys.argv[1]): time.sleep(0.02)
named_function()
"""


def test_a_signal_to_one_rank_shows_the_stacks_of_all(tmp_path: object) -> None:
    go = f"{tmp_path}/go"
    argv = program(WAITS_FOR_A_FILE, end="\nimport socket\nif world.rank != 1: say(str(os.getpid()))\n" + END)
    with running(3, [*argv, go]) as (process, said):
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(3)]
        os.kill(pids[0], signal.SIGUSR2)
        assert until(lambda: sum("of all 3 members" in line for line in said) == 1)
        assert until(lambda: any("named_function" in line for line in said))
        with open(go, "w"):
            pass
        assert process.wait(20) == 0
    text = "".join(said)
    assert len(re.findall(r"^  member \d ", text, re.MULTILINE)) >= 3
    assert text.count("MainThread") >= 3
    assert {str(pid) for pid in pids} <= set(re.findall(r"process (\d+)", text))
