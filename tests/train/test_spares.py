"""Spares take the places of members that die, and the weights are those of a quiet run."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from digits_project import Project, what_decides
from launched import RunProgram

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of
from hpcvol.comm.reserve import require_members
from hpcvol.errors import ConfigError
from hpcvol.train.config import load_config
from hpcvol.train.ledger_account import credit, read_account, verify_lines
from hpcvol.train.verify import verify_run

SECONDS = 240.0
STEPS = 12
STRIKING = (
    "import sys; sys.path.insert(0, {harness!r}); import strikes; strikes.install()\n"
    "from hpcvol.train import stopping; stopping._ALL_SECONDS = 0.0\n"  # steps take milliseconds here
)

# Who is struck where, and who has to have joined at the end: of 6 ranks 0, 1 and 2 are members, 3, 4 and 5 spares.
PLANS: dict[str, tuple[list[list[Any]], list[int]]] = {
    "one spare has died in its sleep, two members at once": (
        [[3, "ready", 1], [0, "optimizer", 4], [1, "optimizer", 4]],
        [4, 5],
    ),
    "a spare dies as it is let in, and one as a member": (
        [[1, "optimizer", 3], [3, "welcome", 1], [4, "optimizer", 2]],
        [4, 5],
    ),
    "a member dies as a spare is let in": ([[1, "optimizer", 3], [2, "welcome", 1]], [4, 5]),
}


outliving = pytest.mark.skipif(
    vendor_of(loaded_library()) != OPEN_MPI, reason="ranks outlive the death of others under Open MPI only"
)


def train(
    project: Project, run_program: RunProgram, run: str, ranks: int, *overrides: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    settings = [part for one in (f"train.steps={STEPS}", *overrides) for part in ("--set", one)]
    argv = [sys.executable, "-m", "hpcvol.cli", "train", str(project.job), "-n", str(ranks), *settings]
    return run_program([*argv, "--run-dir", str(project.folder / run)], variables=variables, seconds=SECONDS)


def struck(project: Project, strikes: list[list[Any]]) -> dict[str, str]:
    """Have members struck; return the variables that say where."""
    code = (project.folder / "digits.py").read_text()
    harness = str(Path(__file__).parents[1] / "harness")
    project.write("digits.py", code.replace("\nimport ", f"\n{STRIKING.format(harness=harness)}import ", 1))
    return {"STRIKES": json.dumps(strikes), "STRUCK": str(project.folder)}


@outliving
@pytest.mark.limit_seconds(600)
@pytest.mark.parametrize("plan", PLANS)
def test_the_run_ends_as_a_quiet_one(plan: str, project: Project, run_program: RunProgram) -> None:
    strikes, joined = PLANS[plan]
    assert project.train("quiet", f"train.steps={STEPS}")
    ended = train(project, run_program, "struck", 6, "elastic.spares=3", **struck(project, strikes))
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    for member, point, _ in strikes:
        assert (project.folder / f"struck-{member}-{point}").exists(), f"{point} was not reached"
    assert "over 3 workers" in said
    assert what_decides(project.summary("struck")) == what_decides(project.summary("quiet"))
    assert [line["step"] for line in project.metrics("struck")] == [line["step"] for line in project.metrics("quiet")]
    assert [int(member) for member in re.findall(r"member (\d+) \([^)]*\) has joined", said)] == joined, said
    ledger = [json.loads(line) for line in (project.folder / "struck" / "ledger.jsonl").read_text().splitlines()]
    assert [line["version"] for line in ledger if "event" not in line] == list(range(1, STEPS + 1))
    told = [name for line in ledger if line.get("event") == "join" for name in line["who"]]
    assert [int(name.split()[1]) for name in told] == joined
    account = read_account(project.folder / "struck")
    assert account is not None
    assert not list(verify_lines(account))
    credited = {int(name.split()[1]) for name in credit(account)}
    assert credited >= {0, *joined} - {member for member, *_ in strikes}


SERVED = ("strategy.kind=parameter_server", "strategy.replicas=1")
STALE = ("train.sum=float", "strategy.max_staleness=inf")
# What shares the work, how many of the ranks are spares, who is struck where, and who has to have joined at the end.
WAYS: dict[str, tuple[tuple[str, ...], int, int, list[list[Any]], list[int]]] = {
    "both servers, one after the other": (
        (*SERVED, "strategy.servers=2"),
        6,
        2,
        [[1, "optimizer", 3], [2, "pull", 7]],
        [4, 5],
    ),
    "groups that push": (
        (*SERVED, *STALE, "strategy.groups=2"),
        5,
        1,
        [[0, "push", 1]],  # early: nobody waits for anybody, and who comes in late finds nothing left to do
        [4],
    ),
    "supernodes": (
        ("train.sum=float", "strategy.groups=2", "strategy.between.period=2", "strategy.between.codec=topk:0.5"),
        5,
        1,
        [[2, "backward", 3]],
        [4],
    ),
}


@outliving
@pytest.mark.limit_seconds(600)
@pytest.mark.parametrize("way", WAYS)
def test_spares_take_places_whoever_has_the_parameters(way: str, project: Project, run_program: RunProgram) -> None:
    keys, ranks, spares, strikes, joined = WAYS[way]
    more = (*keys, f"elastic.spares={spares}", "checkpoint.every_steps=3")
    ended = train(project, run_program, "struck", ranks, *more, **struck(project, strikes))
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    for member, point, _ in strikes:
        assert (project.folder / f"struck-{member}-{point.replace(' ', '_')}").exists(), f"{point} was not reached"
    assert [int(member) for member in re.findall(r"member (\d+) \([^)]*\) has joined", said)] == joined, said
    if "train.sum=float" not in keys:
        assert project.train("quiet", f"train.steps={STEPS}")
        assert what_decides(project.summary("struck")) == what_decides(project.summary("quiet"))
    found = verify_run(project.folder / "struck")
    assert (found.damaged, found.notes) == ([], [])
    ledger = [json.loads(line) for line in (project.folder / "struck" / "ledger.jsonl").read_text().splitlines()]
    versions = [line for line in ledger if "event" not in line]
    assert [line["version"] for line in versions] == list(range(1, STEPS + 1))
    if "strategy.servers=2" not in keys:  # there they take the places of servers
        assert {str(joined[-1])} & {member for line in versions for member in line["members"]}


@outliving
@pytest.mark.limit_seconds(300)
def test_nobody_takes_the_place_of_one_that_leaves(project: Project, run_program: RunProgram) -> None:
    variables = struck(project, [[1, "optimizer", 3, "SIGTERM"]])
    ended = train(project, run_program, "run", 4, "elastic.spares=1", **variables)
    assert ended.returncode == 0, ended.stderr
    assert "member 1" in ended.stderr
    assert "left: 2 members go on" in ended.stderr
    assert "member 3" in ended.stdout
    assert "sleeps until a member dies" in ended.stdout
    assert "joined" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("[elastic]\nspares = 1\nrefill = true", "choose one of them"),
        ("[elastic]\nspares = 1\n[train]\nsteps = 3\ntrace = true", "do not go together with train.trace"),
        ("[elastic]\nspares = 1\nverify_share = 0.5", "do not go together with elastic.verify_share"),
    ],
)
def test_what_does_not_go_together_is_refused(keys: str, words: str, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(f'[model]\nbuild = "digits.py:build"\n[data]\npath = "data"\n{keys}\n')
    with pytest.raises(ConfigError, match=words):
        load_config(job)


@pytest.mark.parametrize(("ranks", "spares", "left"), [(4, 3, 1), (4, 7, 0), (1, 1, 0)])
def test_too_few_members_are_refused(ranks: int, spares: int, left: int) -> None:
    with pytest.raises(ConfigError, match=f"leaves {left} of {ranks} ranks to train"):
        require_members(ranks, spares)


@pytest.mark.limit_seconds(200)
def test_spares_of_members_that_do_not_outlive_others_are_refused(project: Project, run_program: RunProgram) -> None:
    ended = train(project, run_program, "run", 3, "elastic.spares=1", "elastic.enabled=false")
    assert ended.returncode not in (0, None)
    assert "members do not outlive others here" in " ".join(ended.stderr.split())
    assert not (project.folder / "run" / "ledger.jsonl").exists()
