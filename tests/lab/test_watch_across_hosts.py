"""Who is stuck on another host: what boards do not show is asked over the network."""

import re
import sys

import pytest
from lab import MakeHosts

START = """
import os, signal, sys, time
import numpy as np
from hpcvol.collectives import allreduce
from hpcvol.comm import set_patience, start
world = start()
set_patience(2, ABORT)
vector = np.zeros(1000, np.float32)
allreduce(world, vector, "sum", "ring")
"""

CASES = {
    "mismatch": (
        "if world.rank == 3: world.barrier()\nallreduce(world, vector, 'sum', 'ring')",
        r"error: members disagree about collective call \d+ of their group:\n  member \d \(h\d\) calls? "
        r"(barrier|allreduce sum float32\[1000\] by ring) at <string>:\d+ <module>\n  member \d \(h\d\) calls? ",
    ),
    "leaves": (
        "if world.rank == 3: sys.exit(0)\nallreduce(world, vector, 'sum', 'ring')",
        r"error: member 3 \(h1\) came to the end of its program while member \d \(h\d\)",
    ),
    "stopped": (
        "if world.rank == 3: os.kill(os.getpid(), signal.SIGSTOP)\nallreduce(world, vector, 'sum', 'ring')",
        r"warning: waiting for \d+ s for member 3 \(h1\) in .*\n(.*\n)*?  member 3 \(h1\), process \d+, is stopped",
    ),
}


@pytest.mark.limit_seconds(120)
@pytest.mark.parametrize("case", CASES)
def test_a_member_of_another_host_is_named(make_hosts: MakeHosts, case: str) -> None:
    does, said = CASES[case]
    hosts = make_hosts(2)
    program = [sys.executable, "-c", START.replace("ABORT", "6") + does]
    launch = hosts.launch_command({"h0": 2, "h1": 2}, program)
    done = hosts.run("h0", launch.argv, variables=launch.environment, seconds=90)
    assert done.returncode != 0
    assert re.search(said, done.stderr), done.stderr
