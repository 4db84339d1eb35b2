"""What is known of other ranks, and what follows from it for one that waits."""

import numpy as np
import pytest
from launched import RunRanks

from hpcvol.comm.calls import Call, Progress, Row
from hpcvol.comm.trouble import Verdict, judge

BARRIER, ANY, EXIT = Call.of("barrier"), Call.of("any"), Call.of("exit")
SUM = Call.of("allreduce", np.dtype(np.float32), 7, "sum")


def progress(sequence: int, call: Call | None, *, inside: bool = True, left: Call | None = None) -> Progress:
    return Progress(sequence, call, 0, inside, left, 0)


def row(sequence: int, call: Call | None, *, leaving: bool = False, alive: bool = True, inside: bool = True) -> Row:
    return Row(progress(sequence, call, inside=inside, left=call), leaving, alive)


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        (BARRIER, row(3, BARRIER), None),
        (BARRIER, row(2, ANY, inside=False), None),
        (BARRIER, row(3, SUM), "mismatch"),
        (SUM, row(3, ANY), "mismatch"),
        (SUM, row(3, EXIT, leaving=True), "left"),
        # Both learn it where they meet.
        (BARRIER, row(3, ANY), "mismatch at a meeting"),
        (BARRIER, row(3, EXIT, leaving=True), "left at a meeting"),
        (BARRIER, row(2, ANY, inside=False, leaving=True), "left"),
        (BARRIER, row(3, BARRIER, inside=False, leaving=True), None),  # it is through, and this rank will be
        (BARRIER, row(2, ANY, inside=False, alive=False), "died"),
        (BARRIER, row(3, BARRIER, alive=False), "died"),
        (BARRIER, row(3, BARRIER, inside=False, alive=False), None),
        # At the end of its program a rank says so first, and enters the call in which all leave a moment later.
        (EXIT, row(2, ANY, inside=False, leaving=True), None),
        (EXIT, row(3, EXIT, leaving=True), None),
        (EXIT, row(3, BARRIER), "mismatch at a meeting"),
    ],
)
def test_who_waits_in_vain(mine: Call, theirs: Row, verdict: str | None) -> None:
    found = judge(progress(3, mine), {0: row(3, mine), 1: theirs})
    kind, _, meeting = (verdict or "").partition(" ")
    assert found == (verdict and Verdict(kind, 1, bool(meeting)))  # type: ignore[arg-type]


SLOW_TO_LEAVE = """
import time
from hpcvol.comm import start
from hpcvol.comm.calls import Calls
world = start()
world.barrier()
if world.rank == 0:
    leave = Calls.leave
    def leave_and_be_interrupted(calls):
        leave(calls)
        time.sleep(0.3)
    Calls.leave = leave_and_be_interrupted
"""


def test_a_rank_may_be_interrupted_while_it_leaves(run_ranks: RunRanks) -> None:
    ended = run_ranks(3, ["-c", SLOW_TO_LEAVE])
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
