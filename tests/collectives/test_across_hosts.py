"""Collectives over a network: ranks on two virtual hosts, where MPI itself tells the nodes apart."""

import sys
from pathlib import Path

import pytest
from lab import MakeHosts

CHECKS = """
import itertools, sys

import ml_dtypes
import numpy as np

from hpcvol import collectives
from hpcvol.collectives import Table, allreduce, table_of, use_table
from hpcvol.collectives.algorithms import CANDIDATES
from hpcvol.collectives.measure import BY_MESSAGES
from hpcvol.collectives.table import Cost
from hpcvol.comm import start

world = start()
sizes = tuple(map(int, sys.argv[1:]))
assert world.carriers.node_sizes == sizes, world.carriers
assert world.node.size == sizes[world.hosts[world.rank] == "h1"]
assert world.carriers.number == min(sizes)
measured = table_of(world)
assert set(measured.costs) == {"within", "between", "all"}, measured

# Every rank believes in another algorithm, and all use the table of rank 0.
favourite = list(CANDIDATES)[world.rank]
costs = {name: Cost(1e-6, 1e-9) if name == favourite else Cost(1e-3, 1e-6) for name in CANDIDATES}
use_table(Table({"within": {BY_MESSAGES: Cost(1e-6, 1e-9)}, "between": costs, "all": costs}))

for group in (world, world.split(0)):
    dtypes = (np.float32, np.int64, np.dtype(ml_dtypes.bfloat16))
    algorithms = (*CANDIDATES, "hierarchical", "auto")
    for numel, dtype, algorithm in itertools.product((0, 1, 3, 97, 300_007), dtypes, algorithms):
        vector = (np.arange(numel) % 7 + group.rank).astype(dtype)
        allreduce(group, vector, "sum", algorithm)
        ranks = sum(range(group.size))
        assert (vector.astype(np.float64) == np.arange(numel) % 7 * group.size + ranks).all(), (algorithm, numel)
        assert len(set(group.gather_objects(vector.tobytes()[:4096]))) == 1
assert table_of(world) == measured
counts = [5, 0, 70_000, 3][: world.size]
out = np.zeros(sum(counts))
collectives.all_gather(world, np.full(counts[world.rank], world.rank * 1.0), out, counts)
assert (out == np.repeat(np.arange(world.size), counts)).all()
mine = np.zeros(counts[world.rank])
collectives.reduce_scatter(world, out, mine, "max", counts)
assert (mine == world.rank).all()
collectives.broadcast(world, out, 1)
collectives.barrier(world)
sys.stdout.write(f"rank {world.rank} is done\\n")
"""


@pytest.mark.limit_seconds(200)
@pytest.mark.parametrize("ranks", [(2, 2), (1, 2)], ids=str)
def test_two_hosts(ranks: tuple[int, int], make_hosts: MakeHosts, tmp_path: Path) -> None:
    hosts = make_hosts(2)
    script = tmp_path / "checks.py"
    script.write_text(CHECKS)
    launch = hosts.launch_command(
        dict(zip(hosts.names, ranks, strict=True)), [sys.executable, str(script), *map(str, ranks)]
    )
    done = hosts.run("h0", launch.argv, variables=launch.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(sum(ranks)):
        assert f"rank {rank} is done" in done.stdout
    assert hosts.traffic()["h1"].sent_nbytes > 1_000_000
