"""Members that are killed at any point: those that live go on, and the weights are those of a quiet run."""

from pathlib import Path
from typing import Any

import pytest
from launched import RunProgram
from struck_loops import Said, run_struck

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of

NUM_RANKS = 4
STEPS = 6

LOOP = """
import hashlib, json, os, sys
from pathlib import Path
import torch
from torch import nn
sys.path.insert(0, os.environ["HARNESS"])
import strikes
import hpcvol

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 90
    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(12, generator=generator)
        return {"x": x, "y": (x.sum() > 0).long()}

strikes.install()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.3), nn.Linear(40, 2))
loss = lambda unit: nn.functional.cross_entropy(model(unit["x"]), unit["y"])
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
servers = None if sys.argv[5] == "none" else hpcvol.ParameterServer(*json.loads(sys.argv[5]))
run = hpcvol.start(model, optimizer, Numbers(), 24, 3, sum=sys.argv[2], dealing=sys.argv[4], servers=servers)
losses = []
for step in run.steps(int(sys.argv[3])):
    for unit in step:
        step.backward(loss(unit))
    losses.append(step.loss)
    if step.index % 2:
        losses.append(run.evaluate(loss, Numbers()).loss)
state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
said = {
    "weights": hashlib.sha256(state).hexdigest(),
    "losses": losses,
    "lost": run.membership.lost,
    "members": run.group.members,
}
Path(sys.argv[1], f"member{run.member}.json").write_text(json.dumps(said))
"""

# In the order in which they are reached; each of these runs loses up to three of its four members.
PLANS = {
    "once, at the beginning of the first sum": [[3, "gather records", 1]],
    "the first one, while it computes": [[0, "forward", 9]],
    "one after the other": [[1, "backward", 12], [0, "all-reduce sum", 6], [3, "optimizer", 4]],
    "two at the same point": [[1, "gather records", 3], [2, "gather records", 3], [0, "step", 4]],
    "around the commit": [[2, "all-reduce max", 4], [1, "optimizer", 3], [0, "evaluation", 2]],
}


@pytest.fixture(autouse=True)
def _outlives_deaths() -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("ranks outlive the death of others under Open MPI only")


def train(
    folder: Path,
    run_program: RunProgram,
    ranks: int,
    strikes: list[list[Any]],
    sum: str,
    dealing: str = "auto",
    servers: str = "none",
    ends: str | None = None,
) -> list[Said]:
    """Train; return what the members that lived to the end said, in the order of their ids."""
    return run_struck(folder, run_program, ranks, strikes, LOOP, [sum, str(STEPS), dealing, servers], ends)


@pytest.fixture(scope="module")
def quiet() -> dict[str, Said]:
    """What an undisturbed run of one rank says, by its sum; filled by the first test that asks."""
    return {}


@pytest.mark.limit_seconds(500)
@pytest.mark.parametrize("plan", PLANS)
def test_the_weights_are_those_of_a_quiet_run(
    plan: str, tmp_path: Path, run_program: RunProgram, quiet: dict[str, Said]
) -> None:
    if "exact" not in quiet:
        (quiet["exact"],) = train(tmp_path / "quiet", run_program, 1, [], "exact")
    strikes = PLANS[plan]
    said = train(tmp_path / "struck", run_program, NUM_RANKS, strikes, "exact")
    victims = {member for member, *_ in strikes}
    assert len(said) == NUM_RANKS - len(victims)
    for one in said:
        assert one["members"] == [member for member in range(NUM_RANKS) if member not in victims]
        assert len(one["lost"]) == len(victims)
        assert one["weights"] == quiet["exact"]["weights"]
        assert one["losses"] == quiet["exact"]["losses"]


@pytest.mark.limit_seconds(500)
def test_units_that_the_dead_had_taken_are_computed(
    tmp_path: Path, run_program: RunProgram, quiet: dict[str, Said]
) -> None:
    """The first one's memory holds the counter from which they all take."""
    if "exact" not in quiet:
        (quiet["exact"],) = train(tmp_path / "quiet", run_program, 1, [], "exact")
    strikes = [[2, "gather records", 2], [0, "forward", 7]]
    said = train(tmp_path / "struck", run_program, NUM_RANKS, strikes, "exact", "dynamic")
    assert [one["members"] for one in said] == [[1, 3]] * 2
    for one in said:
        assert one["weights"] == quiet["exact"]["weights"]
        assert one["losses"] == quiet["exact"]["losses"]


# Members 0 and 1 are on one host, 2 and 3 on the other: gradients go between hosts while units are computed.
BETWEEN_HOSTS: dict[str, tuple[str, str, list[list[Any]]]] = {
    "exact: as the other of its host has computed": ("exact", "none", [[3, "forward", 11]]),
    "exact: the first one, then one of the other host": (
        "exact",
        "none",
        [[0, "forward", 8], [2, "all-reduce sum", 5]],
    ),
    "two serve, with a copy": ("exact", "[2, 1]", [[3, "all-reduce sum", 4], [1, "pull", 5]]),
    "float, all serve, with a copy": ("float", '["all", 1]', [[2, "forward", 3]]),
}


@pytest.mark.limit_seconds(500)
@pytest.mark.parametrize("plan", BETWEEN_HOSTS)
def test_one_of_a_host_dies(
    plan: str,
    tmp_path: Path,
    run_program: RunProgram,
    quiet: dict[str, Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sum, servers, strikes = BETWEEN_HOSTS[plan]
    if sum == "exact" and "exact" not in quiet:
        (quiet["exact"],) = train(tmp_path / "quiet", run_program, 1, [], "exact")
    monkeypatch.setenv("ON_TWO_HOSTS", "1")
    said = train(tmp_path / "struck", run_program, NUM_RANKS, strikes, sum, servers=servers)
    victims = {member for member, *_ in strikes}
    assert len(said) == NUM_RANKS - len(victims)
    for one in said:
        assert len(one["lost"]) == len(victims)
        if sum == "exact":
            assert one["losses"] == quiet["exact"]["losses"]
            assert one["weights"] == quiet["exact"]["weights"]
        else:
            assert len(one["losses"]) == STEPS + STEPS // 2
            assert one["losses"][-1] < 1.0


@pytest.mark.limit_seconds(250)
def test_the_float_sum_computes_the_step_again(tmp_path: Path, run_program: RunProgram) -> None:
    strikes = [[1, "all-reduce sum", 3], [0, "optimizer", 4]]
    said = train(tmp_path / "struck", run_program, 3, strikes, "float")
    assert [one["members"] for one in said] == [[2]]
    assert len(said[0]["losses"]) == STEPS + STEPS // 2
    assert said[0]["losses"][-1] < 1.0


# Of four members: who serves, copies of each shard, and who is struck when. Member 0 works rather than serves.
SERVED = {
    "workers of one server": ("[1]", [[3, "backward", 9], [0, "gather records", 5]]),
    "workers, as parameters are handed out": ("[2]", [[3, "pull", 3]]),
    "two of four that all serve, with copies": ('["all", 1]', [[0, "pull", 2], [3, "optimizer", 4]]),
    "a server with a copy, before and after it has applied": ("[3, 1]", [[1, "optimizer", 3], [2, "pull", 5]]),
    "two at a time, with two copies": ('["all", 2]', [[1, "pull", 4], [2, "pull", 4]]),
}


@pytest.mark.limit_seconds(500)
@pytest.mark.parametrize("plan", SERVED)
def test_shards_outlive_their_holders(
    plan: str, tmp_path: Path, run_program: RunProgram, quiet: dict[str, Said]
) -> None:
    if "exact" not in quiet:
        (quiet["exact"],) = train(tmp_path / "quiet", run_program, 1, [], "exact")
    servers, strikes = SERVED[plan]
    said = train(tmp_path / "struck", run_program, NUM_RANKS, strikes, "exact", servers=servers)
    victims = {member for member, *_ in strikes}
    assert [one["members"] for one in said] == [[m for m in range(NUM_RANKS) if m not in victims]] * (
        NUM_RANKS - len(victims)
    )
    for one in said:
        assert one["weights"] == quiet["exact"]["weights"]
        assert one["losses"] == quiet["exact"]["losses"]


@pytest.mark.limit_seconds(250)
def test_a_server_without_a_copy_ends_the_run(tmp_path: Path, run_program: RunProgram) -> None:
    ends = "strategy.replicas = 1 keeps a copy of every shard on another member"
    assert train(tmp_path / "struck", run_program, 3, [[1, "optimizer", 3]], "exact", servers="[1]", ends=ends) == []
