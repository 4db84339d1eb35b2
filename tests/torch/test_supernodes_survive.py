"""Members of supernodes that are killed: the round is begun again by those that live, and every step counts once.

Gradients do not depend on the parameters, so that the weights are those of a quiet run but for rounding, whoever forms
which group, if no step was lost and none applied twice.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from launched import RunProgram
from struck_loops import run_struck

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of

NUM_RANKS = 4
STEPS = 40

LOOP = """
import json, os, sys, time
from pathlib import Path
import torch
sys.path.insert(0, os.environ["HARNESS"])
import strikes
import hpcvol

NUMEL = 5_000

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 80
    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return {"x": 16.0 * torch.randint(-4, 5, (NUMEL,), generator=generator)}

strikes.install()
torch.manual_seed(0)
model = torch.nn.Linear(NUMEL, 1, bias=False)
with torch.no_grad():
    model.weight.zero_()
optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=1e-6)  # it keeps something, which does not matter
spec = hpcvol.Supernodes(json.loads(sys.argv[2]), int(sys.argv[3]))
run = hpcvol.start(model, optimizer, Numbers(), 16, 1, sum="float", supernodes=spec)
counted, mine = [], 0
for until in (12, 40):
    for step in run.steps(until):
        for unit in step:
            step.backward((model.weight[0] * unit["x"].mean(0)).sum())
        mine += 1
    counted += [one.index for one in run.counted]
    samples = sum(one.num_samples for one in run.counted)
    if until == 12:
        run.gather_optimizer()
said = {
    "weights": model.weight.tolist(),
    "counted": counted,
    "samples": samples,
    "mine": mine,
    "teams": run.grouping.teams,
    "lost": run.membership.lost,
    "members": run.group.members,
}
Path(sys.argv[1], f"member{run.member}.json").write_text(json.dumps(said))
"""

# Of four members: groups, the period, and who is struck when. Members 0 and 2 lead the groups of two.
PLANS: dict[str, tuple[str, int, list[list[Any]]]] = {
    "a leader in its step": ("2", 4, [[2, "backward", 18]]),
    "the first member, as its group sums": ("2", 4, [[0, "gather records", 3]]),
    "one of a group on two hosts": ("1", 4, [[3, "forward", 19]]),
    "as groups meet": ("2", 4, [[3, "average", 2]]),
    "a whole group": ("2", 5, [[2, "backward", 13], [3, "backward", 13]]),
    "one after the other, in the recovery too": ("4", 3, [[1, "forward", 9], [3, "unite", 1]]),
}


@pytest.fixture(autouse=True)
def _outlives_deaths() -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("ranks outlive the death of others under Open MPI only")


@pytest.fixture(scope="module")
def quiet() -> dict[str, Any]:
    """Weights of an undisturbed run of one rank; filled by the first test that asks."""
    return {}


@pytest.mark.limit_seconds(300)
@pytest.mark.parametrize("plan", PLANS)
def test_every_step_counts_once(
    plan: str, tmp_path: Path, run_program: RunProgram, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, period, strikes = PLANS[plan]
    if "one" not in quiet:
        (alone,) = run_struck(tmp_path / "quiet", run_program, 1, [], LOOP, ["1", "1000"])
        quiet["one"] = torch.tensor(alone["weights"])
    if plan.endswith("on two hosts"):
        monkeypatch.setenv("ON_TWO_HOSTS", "1")
    said = run_struck(tmp_path / "struck", run_program, NUM_RANKS, strikes, LOOP, [groups, str(period)])
    victims = {member for member, *_ in strikes}
    living = [member for member in range(NUM_RANKS) if member not in victims]
    assert [one["members"] for one in said] == [living] * len(living)
    assert len({str(one["weights"]) for one in said}) == 1
    for one in said:
        assert one["counted"] == list(range(STEPS))
        assert one["samples"] == 28 * 16
        assert len(one["lost"]) == len(victims)
        assert one["mine"] > STEPS or plan == "as groups meet"
        assert sorted(member for team in one["teams"] for member in team) == living
    torch.testing.assert_close(torch.tensor(said[0]["weights"]), quiet["one"], rtol=1e-4, atol=1e-2)
