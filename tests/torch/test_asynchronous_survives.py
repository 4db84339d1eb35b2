"""Members that are killed while none waits for others: what counted, counts, and every step counts once.

Gradients are integers that do not depend on the parameters, so that the weights are those of a quiet run, in whatever
order steps took effect, if none was lost and none applied twice, in any shard.
"""

from pathlib import Path
from typing import Any

import pytest
from launched import RunProgram
from struck_loops import Said, run_struck

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of

NUM_RANKS = 4

LOOP = """
import hashlib, json, math, os, sys, time
from functools import partial
from pathlib import Path
import torch
sys.path.insert(0, os.environ["HARNESS"])
import strikes
import hpcvol
import hpcvol.torch.start as door
from hpcvol.strategies import wire

door.Settings = partial(door.Settings, bucket_nbytes=16384)
wire._STRETCH_NBYTES = 4096
NUMEL = 30_000

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 80
    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return {"x": 16.0 * torch.randint(-4, 5, (NUMEL,), generator=generator)}

strikes.install()
model = torch.nn.ParameterList(torch.zeros(NUMEL // 4) for _ in range(4))
optimizer = torch.optim.SGD(model.parameters(), 1.0)
servers, replicas, staleness, *groups = json.loads(sys.argv[2])
spec = hpcvol.ParameterServer(servers, replicas, float(staleness))
supernodes = hpcvol.Supernodes(*groups) if groups else None
run = hpcvol.start(model, optimizer, Numbers(), 16, 4, sum="float", servers=spec, supernodes=supernodes)
counted, mine = [], []
for until in (12, 40):
    for step in run.steps(until):
        for unit in step:
            time.sleep(0.002 * (run.member % 3))
            parts = unit["x"].mean(0).chunk(4)
            step.backward(sum((weight * part).sum() for weight, part in zip(model, parts)))
        mine.append(step.index)
    counted += [one.index for one in run.counted]
    behind = max(one.behind for one in run.counted)
said = {
    "weights": hashlib.sha256(torch.cat(list(model)).detach().numpy().tobytes()).hexdigest(),
    "counted": sorted(counted),
    "mine": mine,
    "behind": behind,
    "lost": run.membership.lost,
    "members": run.group.members,
}
Path(sys.argv[1], f"member{run.member}.json").write_text(json.dumps(said))
"""

# Of four members: servers, copies, staleness, groups and their period, and who is struck when. Member 0 works rather
# than serves: the head is the first that serves.
PLANS: dict[str, tuple[str, list[list[Any]]]] = {
    "workers that compute and push": ('[1, 0, "inf"]', [[2, "backward", 3], [0, "push", 5]]),
    "a worker that others would wait for": ('[1, 0, "1"]', [[3, "forward", 4]]),
    "the head, as it applies": ('["all", 1, "inf"]', [[0, "optimizer", 9]]),
    "one after the other, all of whom serve": ('["all", 1, "2"]', [[3, "optimizer", 11], [1, "claim", 13]]),
    "servers with a copy, the head first": ('[3, 1, "4"]', [[1, "optimizer", 5], [2, "optimizer", 30]]),
    "one of a group, as it sums": ('[1, 0, "inf", 2]', [[2, "gather records", 4]]),
    "who speaks for a group, as it pushes": ('["all", 1, "inf", 2]', [[2, "push", 5]]),
    "of groups, as they wait for parameters": ('["all", 2, "1", 2, 3]', [[3, "claim", 3], [0, "claim", 4]]),
    "one of a group on two hosts": ('["all", 1, "inf", 1]', [[3, "forward", 9]]),
    "workers that push while they compute, on two hosts": (
        '["all", 2, "inf"]',
        [[2, "push early", 6], [1, "push early", 7]],
    ),
    "as they meet": ('["all", 2, "inf"]', [[1, "meet", 1], [2, "meet", 2]]),
}


@pytest.fixture(autouse=True)
def _outlives_deaths() -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("ranks outlive the death of others under Open MPI only")


@pytest.fixture(scope="module")
def quiet() -> dict[str, Said]:
    """What an undisturbed run of one rank says; filled by the first test that asks."""
    return {}


@pytest.mark.limit_seconds(300)
@pytest.mark.parametrize("plan", PLANS)
def test_every_push_counts_once(
    plan: str, tmp_path: Path, run_program: RunProgram, quiet: dict[str, Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "one" not in quiet:
        (quiet["one"],) = run_struck(tmp_path / "quiet", run_program, 1, [], LOOP, ['["all", 0, "inf"]'])
    servers, strikes = PLANS[plan]
    if plan.endswith("on two hosts"):
        monkeypatch.setenv("ON_TWO_HOSTS", "1")
    said = run_struck(tmp_path / "struck", run_program, NUM_RANKS, strikes, LOOP, [servers])
    victims = {member for member, *_ in strikes}
    living = [member for member in range(NUM_RANKS) if member not in victims]
    assert [one["members"] for one in said] == [living] * len(living)
    for one in said:
        assert one["counted"] == list(range(40))
        assert one["weights"] == quiet["one"]["weights"]
        assert len(one["lost"]) == len(victims)
    if plan == "one of a group, as it sums":  # what others are at is not lost with it
        assert len(set(said[-1]["mine"])) == len(said[-1]["mine"])


@pytest.mark.limit_seconds(250)
def test_a_server_without_a_copy_ends_the_run(tmp_path: Path, run_program: RunProgram) -> None:
    ends = "strategy.replicas = 1 keeps a copy of every shard on another member"
    strikes: list[list[Any]] = [[1, "optimizer", 7]]
    assert run_struck(tmp_path / "run", run_program, 3, strikes, LOOP, ['[1, 0, "inf"]'], ends) == []
