"""A rank that is killed inside an all-reduce in shared memory: the others get an error that says so, within seconds.

Under Open MPI with fault tolerance, where ranks outlive the death of others.
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

NUM_RANKS = 3
SECONDS = 20.0

VICTIM_DIES = '''
"""Rank 1 of 3 enters the call that is named and is killed while it waits for the others, who come only then."""
import json, os, signal, sys, time
from pathlib import Path

import numpy as np

from hpcvol.collectives import cross_memory, direct, rendezvous, staged
from hpcvol.comm import start

call, out = sys.argv[1], Path(sys.argv[2])
world = start()
vector = np.ones(1 << 20, np.float32)
shared = direct.share(world, 1 << 20, np.float32)

def halves():
    shared.reduce_slice("sum")
    shared.spread_slice()

CALLS = {
    "direct": lambda: shared.allreduce("sum"),
    "halves": halves,
    "staged": lambda: staged.allreduce(world, vector, "sum"),
    "cross_memory": lambda: cross_memory.allreduce(world, vector, "sum"),
}
if call == "cross_memory" and not cross_memory.usable(world):
    (out / "refused").touch()
    os._exit(0)
staged.usable(world)
CALLS[call]()  # all is well at first
world.barrier()

def strike(*_):
    (out / "struck").write_text(call)
    os.kill(os.getpid(), signal.SIGKILL)

if world.rank == 1:
    for module in (direct, staged, cross_memory):
        module.go_on = strike
else:
    until = time.monotonic() + 20
    while not (out / "struck").exists() and time.monotonic() < until:
        time.sleep(0.002)
began = time.monotonic()
try:
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


@pytest.mark.parametrize("call", ["direct", "halves", "staged", "cross_memory"])
def test_every_other_rank_gets_an_error(call: str, run_program: RunProgram, tmp_path: Path) -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("ranks outlive the death of others under Open MPI only")
    script = tmp_path / "victim.py"
    script.write_text(VICTIM_DIES)
    launch = launch_command(NUM_RANKS, [sys.executable, str(script), call, str(tmp_path)])
    argv = [launch.argv[0], "--with-ft", "ulfm", *launch.argv[1:]]
    ended = run_program(argv, variables={**environment.snapshot(), **launch.environment})
    if (tmp_path / "refused").exists():
        pytest.skip("this system does not let processes read each other's memory")
    assert (tmp_path / "struck").read_text() == call, ended.stderr
    for rank in (0, 2):
        said = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert said["error"] == "LostMemberError", said
        assert "has died" in said["text"]
        assert "allreduce sum float32[1048576]" in said["text"]
        assert said["seconds"] < SECONDS
