"""A rank that is killed inside a collective: every other rank gets an error that says so, and none waits for ever.

Under Open MPI with fault tolerance, where ranks outlive the death of others. The rank that dies does so at a message in
the middle of the call.
"""

import json
import sys
from pathlib import Path

import pytest
from launched import RunProgram

from hpcvol import environment
from hpcvol.comm import launch_command
from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of

NUM_RANKS = 4
SECONDS = 10.0

VICTIM_DIES = '''
"""Rank 2 of 4 kills itself in the middle of the call that is named; the others write down what became of them."""
import json, os, signal, sys, time
from pathlib import Path

import numpy as np

from hpcvol import collectives
from hpcvol.collectives import hierarchical
from hpcvol.collectives.algorithms import CANDIDATES
from hpcvol.comm import Group, start
from hpcvol.comm.messages import Messages

call, out, num_messages = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
world = start()
VICTIM = 2
vector = np.ones(1 << 20, np.float32)
half = np.ones(1 << 19, np.float32)
if call == "hierarchical":
    world.node = world.part(world.rank // 2)

def pass_on():
    right, left, theirs = (world.rank + 1) % world.size, (world.rank - 1) % world.size, np.empty_like(half)
    if world.rank % 2:
        collectives.receive(world, theirs, left)
    collectives.send(world, half, right)
    if not world.rank % 2:
        collectives.receive(world, theirs, left)

CALLS = {
    "hierarchical": lambda: hierarchical.allreduce(world, vector, "sum", CANDIDATES["ring"].allreduce),
    "reduce_scatter": lambda: collectives.reduce_scatter(world, vector, half[: 1 << 18]),
    "all_gather": lambda: collectives.all_gather(world, half[: 1 << 18], vector),
    "all_to_all": lambda: collectives.all_to_all(world, vector, np.empty_like(vector)),
    "broadcast": lambda: collectives.broadcast(world, vector, VICTIM),
    "gather": lambda: collectives.gather(world, half[: 1 << 18], vector if world.rank == 0 else None),
    "scatter": lambda: collectives.scatter(world, vector if world.rank == VICTIM else None, half[: 1 << 18], VICTIM),
    "send": pass_on,
    "barrier": lambda: collectives.barrier(world),
}
for name in ("ring", "recursive_doubling", "halving_doubling", "library"):
    CALLS[name] = lambda name=name: collectives.allreduce(world, vector, "sum", name)

CALLS[call]()  # all is well at first
if call == "hierarchical":
    world.carriers
struck = 0

def strike(self, *args, send=Messages.send):
    global struck
    struck += 1
    if struck > num_messages:
        (out / "struck").write_text(call)
        os.kill(os.getpid(), signal.SIGKILL)
    return send(self, *args)

if world.rank == VICTIM:
    Messages.send = strike
    if call == "library":
        (out / "struck").write_text(call)
        os.kill(os.getpid(), signal.SIGKILL)
began = time.monotonic()
try:
    while True:  # who is through with the call meets the failure in the next one
        CALLS[call]()
except Exception as error:
    said = {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - began}
    (out / f"rank{world.rank}.json").write_text(json.dumps(said))
# No end in order after a failure. All have written before the first leaves, which would end the others.
until = time.monotonic() + 20
while len(list(out.glob("rank*.json"))) < world.size - 1 and time.monotonic() < until:
    time.sleep(0.01)
os._exit(0)
'''

# How many messages the victim sends before it dies: none, one, or some.
STRIKES = {
    "ring": 3,
    "recursive_doubling": 1,
    "halving_doubling": 5,
    "library": 0,
    "hierarchical": 5,
    "reduce_scatter": 2,
    "all_gather": 2,
    "all_to_all": 1,
    "broadcast": 1,
    "gather": 2,
    "scatter": 2,
    "send": 1,
    "barrier": 1,
}


@pytest.mark.parametrize("call", STRIKES)
def test_every_other_rank_gets_an_error(call: str, run_program: RunProgram, tmp_path: Path) -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("ranks outlive the death of others under Open MPI only")
    script = tmp_path / "victim.py"
    script.write_text(VICTIM_DIES)
    launch = launch_command(NUM_RANKS, [sys.executable, str(script), call, str(tmp_path), str(STRIKES[call])])
    argv = [launch.argv[0], "--with-ft", "ulfm", *launch.argv[1:]]
    run_program(argv, variables={**environment.snapshot(), **launch.environment})
    assert (tmp_path / "struck").read_text() == call
    for rank in (0, 1, 3):
        said = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert said["error"] == "LostMemberError", said
        assert "has died" in said["text"]
        assert said["seconds"] < SECONDS
