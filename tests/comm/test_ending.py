"""How a run ends: one rank's error ends all, with its message and a status that says so. Nobody hangs."""

import os
import sys
import threading
from pathlib import Path

import pytest
from launched import RunProgram, RunRanks

from hpcvol.comm.ending import wait_until_read

START = "from hpcvol.comm import *; from hpcvol.errors import *; import sys, os\nworld = start()\n"
OTHERS_WAIT = "\nworld.barrier()\nworld.barrier()"


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_good_end_finalises_mpi(run_ranks: RunRanks, num_ranks: int) -> None:
    report = "import atexit; atexit.register(lambda: sys.stdout.write(f'left {world.rank}\\n'))"
    ended = run_ranks(num_ranks, ["-c", START + report + "\nworld.barrier()"])
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.split("\n")) == ["", *(f"left {rank}" for rank in range(num_ranks))]
    assert ended.stderr == ""


def test_an_error_of_ours_on_one_rank_ends_all_with_its_message(run_ranks: RunRanks) -> None:
    ended = run_ranks(2, ["-c", START + "if world.rank == 1: raise DataError('shard 3 is torn')" + OTHERS_WAIT])
    assert ended.returncode != 0
    assert "hpcvol: error: member 1 (" in ended.stderr
    assert "): shard 3 is torn\n" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_foreign_error_on_one_rank_ends_all_with_its_traceback(run_ranks: RunRanks) -> None:
    ended = run_ranks(2, ["-c", START + "if world.rank == 1: [].pop()" + OTHERS_WAIT])
    assert ended.returncode != 0
    assert "IndexError: pop from empty list\nhpcvol: error: member 1 (" in ended.stderr
    assert "Traceback (most recent call last)" in ended.stderr


def test_last_words_are_waited_for_until_the_launcher_has_read_them() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"no such layer")
    waiting = threading.Thread(target=wait_until_read, args=(writing,))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    os.read(reading, 100)
    waiting.join()  # ends long before the 2 s that it gives a reader, or the test's own limit says so
    os.close(reading)
    os.close(writing)


def test_what_is_no_pipe_is_not_waited_for(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as log:
        log.write("no such layer")
        log.flush()
        log.seek(0)
        wait_until_read(log.fileno())


def test_an_error_of_all_is_said_once_and_ends_in_order(run_ranks: RunRanks) -> None:
    script = START + (
        "import atexit; atexit.register(lambda: sys.stdout.write('left in order\\n'))\n"
        "with together(world, 'building the model'):\n"
        "    if world.rank == 1: raise ModelError('no builder')\n"
    )
    ended = run_ranks(3, ["-c", script])
    assert ended.returncode != 0
    assert ended.stderr.count("hpcvol: error: ") == 1
    assert ended.stderr.count("building the model: no builder") == 1
    assert "Traceback" not in ended.stderr
    assert ended.stdout.count("left in order") == 3


def test_an_error_that_the_caller_catches_ends_alike(run_ranks: RunRanks) -> None:
    script = START + (
        "try:\n"
        "    if world.rank == 0: raise ConfigError('steps must be positive')\n"
        "except HpcvolError as error:\n"
        "    fail(error)" + OTHERS_WAIT
    )
    ended = run_ranks(2, ["-c", script])
    assert ended.returncode != 0
    assert "hpcvol: error: member 0 (" in ended.stderr


def test_one_rank_alone_is_not_named(run_program: RunProgram) -> None:
    ended = run_program([sys.executable, "-c", START + "raise DataError('shard 3 is torn')"])
    assert (ended.returncode, ended.stderr) == (1, "hpcvol: error: shard 3 is torn\n")


def test_fail_works_before_mpi_starts(run_program: RunProgram) -> None:
    script = "from hpcvol.comm import fail; from hpcvol.errors import *; fail(ConfigError('no such key'))"
    ended = run_program([sys.executable, "-c", script])
    assert (ended.returncode, ended.stderr) == (1, "hpcvol: error: no such key\n")


def test_an_interrupt_is_quiet(run_program: RunProgram) -> None:
    ended = run_program([sys.executable, "-c", START + "raise KeyboardInterrupt"])
    assert (ended.returncode, ended.stderr) == (130, "")


def test_an_interrupt_of_one_rank_ends_all(run_ranks: RunRanks) -> None:
    ended = run_ranks(2, ["-c", START + "if world.rank == 1: raise KeyboardInterrupt" + OTHERS_WAIT])
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr


def test_a_thread_that_dies_is_named_and_the_run_goes_on(run_ranks: RunRanks) -> None:
    script = START + (
        "import threading\n"
        "if world.rank == 1:\n"
        "    thread = threading.Thread(target=[].pop, name='logger')\n"
        "    thread.start(); thread.join()\n"
        "world.barrier()"
    )
    ended = run_ranks(2, ["-c", script])
    assert ended.returncode == 0
    assert "IndexError: pop from empty list\nhpcvol: warning: logger of member 1 (" in ended.stderr
