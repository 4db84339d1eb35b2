"""Stacks of all threads, and of a process that cannot tell them itself."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from launched import RunProgram
from patience import until

from hpcvol.comm import stacks
from hpcvol.comm.stacks import Frame, all_stacks, force_stacks, main_stack, site, stack_of


def test_a_stack_begins_where_the_code_is() -> None:
    stack = stack_of(sys._getframe())
    assert stack[0].function == "test_a_stack_begins_where_the_code_is"
    assert stack[0].file == __file__
    here = [frame for frame in main_stack() if frame.file == __file__]
    assert here[0].function == "test_a_stack_begins_where_the_code_is"
    assert here[0].line > stack[0].line


def test_threads_are_told_apart_by_name() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="waiting for release")
    thread.start()
    try:
        found = all_stacks()
    finally:
        release.set()
        thread.join()
    assert any(frame.function == "wait" for frame in found["waiting for release"])
    assert "MainThread" in found


def test_the_site_of_a_call_is_the_line_that_made_it_and_the_users_own() -> None:
    package = Path(stacks.__file__).parents[1]
    comm = Frame(str(package / "comm" / "group.py"), 70, "barrier")
    step = Frame(str(package / "torch" / "step.py"), 150, "_finish")
    frozen = Frame("<frozen runpy>", 88, "_run_code")
    user = Frame("/home/me/train.py", 12, "main")
    assert site([comm, step, user, frozen]) == "hpcvol/torch/step.py:150 _finish, called from /home/me/train.py:12 main"
    assert site([comm, user, frozen]) == "/home/me/train.py:12 main"
    assert site([comm, step, frozen]) == "hpcvol/torch/step.py:150 _finish"
    assert site([comm]) == "unknown"


HOLDS_THE_LOCK = """
import ctypes, os, sys
from hpcvol.comm.stacks import StackFile

def computes_in_native_code():
    # Sleeps without giving Python's lock to anybody.
    ctypes.PyDLL(None).sleep(60)

file = StackFile()
print(os.getpid(), file.fd, flush=True)
computes_in_native_code()
"""


def test_stacks_of_a_process_whose_lock_is_held() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS_THE_LOCK], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pid, fd = map(int, process.stdout.readline().split())
            assert pid == process.pid
            text: list[str | None] = []
            assert until(lambda: text.append(force_stacks(pid, fd)) or "computes_in_native_code" in (text[-1] or ""))
        finally:
            process.kill()


def test_stacks_of_a_process_that_gets_no_core_for_a_while() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS_THE_LOCK], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pid, fd = map(int, process.stdout.readline().split())
            process.send_signal(signal.SIGSTOP)
            gets_one = threading.Timer(1.5, process.send_signal, (signal.SIGCONT,))
            gets_one.start()
            assert force_stacks(pid, fd)
            gets_one.join()
        finally:
            process.kill()


def test_no_stacks_of_a_process_that_is_not_there() -> None:
    assert force_stacks(2**22 + 1, 3) is None


@pytest.mark.parametrize("handled", [False, True])
def test_a_persons_signal_is_noticed_unless_the_program_has_its_own(run_program: RunProgram, handled: bool) -> None:
    script = (
        "import os, signal, sys, time\nfrom hpcvol.comm.stacks import StackFile\n"
        f"if {handled}: signal.signal(signal.SIGUSR2, lambda *_: print('mine'))\n"
        "file = StackFile()\nbefore = file.demanded()\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "print(before, file.demanded(), file.demanded(), file.on_demand)\nfile.close()\n"
    )
    ended = run_program([sys.executable, "-c", script])
    assert ended.stdout == ("mine\nFalse False False False\n" if handled else "False True False True\n"), ended.stderr
