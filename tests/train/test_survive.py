"""A run in a directory outlives the members that keep it and tell of it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from digits_project import Project, what_decides
from launched import RunProgram

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of
from hpcvol.train.verify import verify_run

SECONDS = 240.0
# More than a busy machine lets a member wait that is well.
PATIENCE = 12
STRIKING = "import sys; sys.path.insert(0, {harness!r}); import strikes; strikes.install()\n"
OVERRIDES = ("train.steps=12", "checkpoint.every_steps=3")

PLANS = {
    "the first one, while it writes a checkpoint": [[0, "checkpoint write", 2]],
    "the first two, as members tell each other what is up": [[0, "exchange notices", 3], [1, "exchange notices", 7]],
    "the first two, before they enter what all have committed": [[0, "ledger", 4], [1, "ledger", 9]],
    "the first one, when only the last checkpoint is left": [[0, "checkpoint write", 4]],
}


@pytest.fixture(autouse=True)
def _outlives_deaths() -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("ranks outlive the death of others under Open MPI only")


def train(project: Project, run_program: RunProgram, run: str, ranks: int, strikes: list[list[Any]], *more: str) -> str:
    overrides = [part for one in (*OVERRIDES, *more) for part in ("--set", one)]
    argv = [sys.executable, "-m", "hpcvol.cli", "train", str(project.job), "-n", str(ranks), *overrides]
    variables = {"STRIKES": json.dumps(strikes), "STRUCK": str(project.folder)}
    ended = run_program([*argv, "--run-dir", str(project.folder / run)], variables=variables, seconds=SECONDS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for member, point, *_ in strikes:
        assert (project.folder / f"struck-{member}-{str(point).replace(' ', '_')}").exists(), f"{point} was not reached"
    return ended.stdout + ended.stderr


def strike_in(project: Project) -> None:
    """Have members struck as they train."""
    code = (project.folder / "digits.py").read_text()
    harness = str(Path(__file__).parents[1] / "harness")
    project.write("digits.py", code.replace("\nimport ", f"\n{STRIKING.format(harness=harness)}import ", 1))


@pytest.mark.limit_seconds(500)
@pytest.mark.parametrize("plan", PLANS)
def test_the_run_goes_on_and_ends_as_a_quiet_one(plan: str, project: Project, run_program: RunProgram) -> None:
    assert project.train("quiet", *OVERRIDES)
    strike_in(project)
    strikes = PLANS[plan]
    said = train(project, run_program, "struck", 3, strikes)
    assert "died: " in said
    assert said.count("complete: 12 steps") == 1
    assert what_decides(project.summary("struck")) == what_decides(project.summary("quiet"))
    assert [line["step"] for line in project.metrics("struck")] == [line["step"] for line in project.metrics("quiet")]
    assert project.steps("struck")[-1] == 12
    views = sorted(path.name for path in (project.folder / "struck" / "views").iterdir())
    assert len(views) >= 2
    ours = [json.loads((project.folder / "struck" / "views" / name).read_text())["members"] for name in views]
    assert ours[0] == [0, 1, 2]
    victims = [member for member, *_ in strikes]
    assert not set(victims) & set(ours[-1])
    lines, quiet = ledger(project, "struck"), ledger(project, "quiet")
    assert [line["version"] for line in lines if "event" not in line] == list(range(1, 13))
    assert digests(lines) == digests(quiet)
    told = [int(who.split()[1]) for line in lines if line.get("event") == "death" for who in line["who"]]
    assert told == victims
    assert lines[-1]["view"] == len(views)
    found = verify_run(project.folder / "struck")
    assert (found.damaged, found.notes) == ([], [])


@pytest.mark.limit_seconds(500)
def test_a_member_that_stands_still_is_killed_by_its_host(project: Project, run_program: RunProgram) -> None:
    assert project.train("quiet", *OVERRIDES)
    strike_in(project)
    strikes = [[1, "forward", 9, "SIGSTOP"]]
    said = train(project, run_program, "struck", 3, strikes, f"comm.abort_seconds={PATIENCE}")
    assert "member 1 (" in said
    assert "is stopped (SIGSTOP" in said
    assert f"than {PATIENCE} s (comm.abort_seconds): member 1 (" in said
    assert "has been killed, for the others to go on" in said
    assert "died: 2 members go on" in said
    assert what_decides(project.summary("struck")) == what_decides(project.summary("quiet"))


STALE = ("strategy.kind=parameter_server", "train.sum=float", "strategy.replicas=1")
STALE_PLANS: dict[str, tuple[tuple[str, ...], list[list[Any]]]] = {
    "asynchronous, encoded: a worker as it pushes, the head as it applies": (
        ("strategy.max_staleness=inf", "strategy.codec=topk:0.25"),
        [[3, "push", 4], [0, "optimizer", 9]],
    ),
    "bounded, elastic averaging: a mirrored server as it applies, then a worker in its own optimizer": (
        ("strategy.max_staleness=2", "strategy.elastic_averaging=0.3"),
        [[1, "optimizer", 7], [2, "local optimizer", 6]],
    ),
    "groups of two that push every three steps: one of a group in its optimizer, then who speaks for another": (
        ("strategy.max_staleness=inf", "strategy.groups=2", "strategy.between.period=3"),
        [[3, "local optimizer", 5], [0, "claim", 3]],
    ),
}


@pytest.mark.limit_seconds(500)
@pytest.mark.parametrize("plan", STALE_PLANS)
def test_every_push_is_in_the_ledger_once(plan: str, project: Project, run_program: RunProgram) -> None:
    """The ledger is replayed: each version is one step of one worker, and each sample is there once."""
    keys, strikes = STALE_PLANS[plan]
    strike_in(project)
    more = (*STALE, *keys, "train.steps=30", "checkpoint.every_steps=10")
    said = train(project, run_program, "struck", 4, strikes, *more)
    assert "died: " in said
    lines = ledger(project, "struck")
    versions = [line for line in lines if "event" not in line]
    assert [line["version"] for line in versions] == list(range(1, 31))
    assert sorted(line["step"] for line in versions) == list(range(30))
    victims = {member for member, *_ in strikes}
    deaths = [line for line in lines if line.get("event") == "death"]
    assert {int(who.split()[1]) for line in deaths for who in line["who"]} == victims
    assert max(len(line["members"]) for line in versions) == (2 if "strategy.groups=2" in keys else 1)
    # It replays all units of all steps, and each checkpoint's weights.
    found = verify_run(project.folder / "struck")
    assert (found.damaged, found.notes) == ([], [])


def ledger(project: Project, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project.folder / run / "ledger.jsonl").read_text().splitlines()]


def digests(lines: list[dict[str, Any]]) -> list[str]:
    return [line["digest"] for line in lines if "event" not in line]
