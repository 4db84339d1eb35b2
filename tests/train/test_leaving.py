"""Members that leave on request: the others go on, and the run ends as a quiet one."""

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
# Steps take milliseconds here: a member does not wait for the others to be asked too.
AT_ONCE = (
    "import sys; sys.path.insert(0, {harness!r}); import strikes; strikes.install()\n"
    "from hpcvol.train import stopping; stopping._ALL_SECONDS = {seconds}\n"
)
OVERRIDES = ("train.steps=12", "checkpoint.every_steps=3")

PLANS: dict[str, list[list[Any]]] = {
    "the first one, which keeps the run": [[0, "backward", 6, "SIGTERM"]],
    "one, while another one dies": [[1, "gather records", 4, "SIGTERM"], [0, "gather records", 5]],
    "two at once": [[1, "forward", 9, "SIGTERM"], [2, "forward", 9, "SIGTERM"]],
}


@pytest.fixture(autouse=True)
def _outlives_deaths() -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("members part under Open MPI only")


def train(project: Project, run_program: RunProgram, run: str, ranks: int, strikes: list[list[Any]]) -> tuple[int, str]:
    overrides = [part for one in OVERRIDES for part in ("--set", one)]
    argv = [sys.executable, "-m", "hpcvol.cli", "train", str(project.job), "-n", str(ranks), *overrides]
    variables = {"STRIKES": json.dumps(strikes), "STRUCK": str(project.folder)}
    ended = run_program([*argv, "--run-dir", str(project.folder / run)], variables=variables, seconds=SECONDS)
    for member, point, *_ in strikes:
        assert (project.folder / f"struck-{member}-{str(point).replace(' ', '_')}").exists(), f"{point} was not reached"
    return ended.returncode, ended.stdout + ended.stderr


def leave_after(project: Project, seconds: float) -> None:
    code = (project.folder / "digits.py").read_text()
    begin = AT_ONCE.format(harness=str(Path(__file__).parents[1] / "harness"), seconds=seconds)
    project.write("digits.py", code.replace("\nimport ", f"\n{begin}import ", 1))


@pytest.mark.limit_seconds(500)
@pytest.mark.parametrize("plan", PLANS)
def test_the_others_go_on_and_end_as_a_quiet_run(plan: str, project: Project, run_program: RunProgram) -> None:
    assert project.train("quiet", *OVERRIDES)
    leave_after(project, 0.0)
    strikes = PLANS[plan]
    status, said = train(project, run_program, "left", 3, strikes)
    assert status == 0, said
    assert " left: " in said
    assert said.count("complete: 12 steps") == 1
    assert what_decides(project.summary("left")) == what_decides(project.summary("quiet"))
    assert [line["step"] for line in project.metrics("left")] == [line["step"] for line in project.metrics("quiet")]
    assert project.steps("left")[-1] == 12
    views = sorted(path for path in (project.folder / "left" / "views").iterdir())
    members = [json.loads(path.read_text())["members"] for path in views]
    assert members[0] == [0, 1, 2]
    assert members[-1] == [member for member in range(3) if member not in {struck for struck, *_ in strikes}]
    lines = [json.loads(line) for line in (project.folder / "left" / "ledger.jsonl").read_text().splitlines()]
    told = {(line["event"], int(who.split()[1])) for line in lines for who in line.get("who", [])}
    assert told == {("leave" if signals else "death", member) for member, _, _, *signals in strikes}
    found = verify_run(project.folder / "left")
    assert (found.damaged, found.notes) == ([], [])


@pytest.mark.limit_seconds(250)
def test_all_that_are_asked_to_end_stop_the_run_with_a_checkpoint(project: Project, run_program: RunProgram) -> None:
    assert project.train("quiet", *OVERRIDES)
    leave_after(project, 60.0)
    strikes: list[list[Any]] = [[member, "gather records", 5, "SIGTERM"] for member in range(3)]
    _, said = train(project, run_program, "stopped", 3, strikes)
    assert "stopped on request after step" in said
    assert " left: " not in said
    assert project.steps("stopped")[-1] < 12
    status, said = train(project, run_program, "stopped", 2, [])
    assert status == 0, said
    assert what_decides(project.summary("stopped")) == what_decides(project.summary("quiet"))
