"""A member that computes wrong gradients under `hpcvol train`: the ledger tells that it was expelled, and why."""

import json
import sys

import pytest
from digits_project import Project, what_decides
from launched import RunProgram

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of
from hpcvol.train.verify import verify_run

LIAR = 1
# From the second step on: the probe has three passes, the first step two units and two checks at most.
LYING = f"""
import pathlib
from hpcvol import environment
honest, passes = build, []

def lie(gradient):
    passes.append(1)
    if len(passes) < 12:
        return gradient
    pathlib.Path(__file__).with_name("lied").touch()
    return gradient + gradient.abs().max() / 1024

def build(**args):
    model = honest(**args)
    if environment.variable("OMPI_COMM_WORLD_RANK") == "{LIAR}":
        next(model.parameters()).register_hook(lie)
    return model
"""


@pytest.mark.limit_seconds(500)
def test_the_ledger_tells_of_it(project: Project, run_program: RunProgram) -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("ranks outlive the death of others under Open MPI only")
    project.write("digits.py", (project.folder / "digits.py").read_text() + LYING)

    def train(run: str, ranks: int, *overrides: str) -> str:
        argv = [sys.executable, "-m", "hpcvol.cli", "train", str(project.job), "-n", str(ranks), *overrides]
        ended = run_program([*argv, "--run-dir", str(project.folder / run)], variables={}, seconds=240.0)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    train("quiet", 1)
    assert not (project.folder / "lied").exists()
    said = train("lied_to", 4, "--set", "elastic.verify_share=1.0")
    assert (project.folder / "lied").exists(), "the lie was not told"
    assert f"member {LIAR} " in said
    assert "is not to be trusted: step " in said
    assert what_decides(project.summary("lied_to")) == what_decides(project.summary("quiet"))
    lines = [json.loads(line) for line in (project.folder / "lied_to" / "ledger.jsonl").read_text().splitlines()]
    (told,) = [line for line in lines if line.get("event") == "expelled"]
    (who,) = told["who"]
    assert who.startswith(f"member {LIAR} ")
    assert "two others come to another gradient of unit" in who
    assert LIAR not in told["members"]
    found = verify_run(project.folder / "lied_to")
    assert (found.damaged, found.notes) == ([], [])
