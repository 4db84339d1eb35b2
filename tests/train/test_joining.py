"""Members that die are replaced while the run goes on, and its weights are those of a quiet run."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from digits_project import Project, what_decides
from launched import RunProgram

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of

SECONDS = 400.0
STEPS = 12
STRIKING = "import sys; sys.path.insert(0, {harness!r}); import strikes; strikes.install()\n"
# The first member goes on from steps 7 and 10 when a newcomer that is awaited is ready, however long it prepares.
WAITING = """

def wait(step, metrics):
    import os, time
    from pathlib import Path
    awaited = dict(zip((7, 10), os.environ["AWAITED"].split()))
    until = time.monotonic() + 200
    while step in awaited and time.monotonic() < until:
        if Path(os.environ["STRUCK"], awaited[step]).exists():
            break
        time.sleep(0.01)
"""
OVERRIDES = (
    f"train.steps={STEPS}",
    "checkpoint.every_steps=5",
    "elastic.refill=true",
    "train.on_metrics=digits.py:wait",
)

PLANS: dict[str, tuple[list[list[Any]], str, set[int]]] = {
    "the first member is replaced, a newcomer dies while it prepares": (
        [[0, "optimizer", 3], [3, "ready", 1]],
        "ready-3 ready-4",
        {1, 2, 4},
    ),
    "a member dies as a newcomer is let in": ([[1, "optimizer", 3], [2, "admit", 1]], "ready-3", {0}),
}


@pytest.fixture(autouse=True)
def _outlives_deaths() -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("ranks outlive the death of others under Open MPI only")


def train(
    project: Project, run_program: RunProgram, run: str, ranks: int, strikes: list[list[Any]], awaited: str
) -> str:
    overrides = [part for override in OVERRIDES for part in ("--set", override)]
    argv = [sys.executable, "-m", "hpcvol.cli", "train", str(project.job), "-n", str(ranks), *overrides]
    variables = {"STRIKES": json.dumps(strikes), "STRUCK": str(project.folder), "AWAITED": awaited}
    ended = run_program([*argv, "--run-dir", str(project.folder / run)], variables=variables, seconds=SECONDS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for member, point, _ in strikes:
        assert (project.folder / f"struck-{member}-{str(point).replace(' ', '_')}").exists(), f"{point} was not reached"
    return ended.stdout + ended.stderr


@pytest.mark.limit_seconds(900)
@pytest.mark.parametrize("plan", PLANS)
def test_the_run_ends_as_a_quiet_one(plan: str, project: Project, run_program: RunProgram) -> None:
    strikes, awaited, members = PLANS[plan]
    code = (project.folder / "digits.py").read_text() + WAITING
    harness = str(Path(__file__).parents[1] / "harness")
    project.write("digits.py", code.replace("\nimport ", f"\n{STRIKING.format(harness=harness)}import ", 1))
    train(project, run_program, "quiet", 1, [], "")
    said = train(project, run_program, "struck", 3, strikes, awaited)
    assert what_decides(project.summary("struck")) == what_decides(project.summary("quiet"))
    assert [line["step"] for line in project.metrics("struck")] == [line["step"] for line in project.metrics("quiet")]
    views = sorted((project.folder / "struck" / "views").iterdir())
    ours = [set(json.loads(path.read_text())["members"]) for path in views]
    joined = [int(member) for member in re.findall(r"member (\d+) \([^)]*\) has joined", said)]
    assert joined == sorted(member for member in members if member > 2), said
    assert members in ours
