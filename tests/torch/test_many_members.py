"""More members than cores: two servers and fourteen workers, together and each for itself."""

from pathlib import Path

import pytest
from launched import RunProgram
from struck_loops import run_struck

NUM_RANKS = 16

LOOP = """
import hashlib, json, sys
from pathlib import Path
import torch
from torch import nn
import hpcvol

torch.manual_seed(1)
samples = [{"x": torch.randn(12), "y": torch.tensor(i % 2)} for i in range(90)]

def trained(servers, sum, max_staleness):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    spec = hpcvol.ParameterServer(servers, max_staleness=max_staleness)
    run = hpcvol.start(model, optimizer, samples, 48, 3, sum=sum, servers=spec)
    mine = 0
    for step in run.steps(30):
        mine += 1
        for unit in step:
            step.backward(nn.functional.cross_entropy(model(unit["x"]), unit["y"]))
    state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    run.close()
    return run, hashlib.sha256(state).hexdigest(), mine

servers = json.loads(sys.argv[2])
together, weights, _ = trained(servers, "exact", 0)
apart, stale_weights, mine = trained(servers, "float", 3)
said = {
    "weights": weights,
    "stale_weights": stale_weights,
    "mine": mine,
    "behind": max(one.behind for one in apart.counted),
    "counted": sorted(one.index for one in apart.counted),
    "serves": apart.member in apart.shards.servers,
    "sent": apart.asynchronous.store.sent,
}
Path(sys.argv[1], f"member{apart.member:02d}.json").write_text(json.dumps(said))
"""


@pytest.mark.any_mpi
@pytest.mark.limit_seconds(400)
def test_two_servers_and_fourteen_workers(tmp_path: Path, run_program: RunProgram) -> None:
    """All together to the bit; each for itself in as many messages as docs/parameter-server.md says."""
    (alone,) = run_struck(tmp_path / "alone", run_program, 1, [], LOOP, ['"all"'])
    said = run_struck(tmp_path / "many", run_program, NUM_RANKS, [], LOOP, ["2"])
    assert [one["weights"] for one in said] == [alone["weights"]] * NUM_RANKS
    assert sum(one["serves"] for one in said) == 2
    assert len({one["stale_weights"] for one in said}) == 1
    assert [one["mine"] for one in said if one["serves"]] == [0, 0]
    assert sum(one["mine"] for one in said) == 30
    assert said[0]["counted"] == list(range(30))
    assert said[0]["behind"] <= 3
    letters, parcels = (sum(counts) for counts in zip(*(one["sent"] for one in said), strict=True))
    # Where a shard is changed again and again while it is copied, it is asked for: a letter and a parcel.
    assert letters - parcels == (4 + 2) * 30 + 2 * NUM_RANKS
