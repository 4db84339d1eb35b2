"""Training on virtual hosts that share nothing but the data: the proof that no shared file system is needed."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from digits_project import EXAMPLES, Project, make_project, what_decides
from lab import MakeHosts
from trace_reader import check_spans, read_trace

from hpcvol.data import build_dataset

SECONDS = 100.0


@pytest.mark.limit_seconds(400)
def test_a_run_survives_the_loss_of_the_only_disk_that_had_its_project(make_hosts: MakeHosts, tmp_path: Path) -> None:
    """h0 alone has the project; h1 is given it, keeps a copy of the run, and has the only one when h0's disk is new."""
    seen = tmp_path / "home" / "project"
    seen.mkdir(parents=True)
    data = tmp_path / "data"
    split = {"train": 0.7, "val": 0.1, "test": 0.2}
    build_dataset("python", [f"{EXAMPLES / 'digits.py'}:samples"], data, split=split, options={})
    hosts = make_hosts(2, private=[seen])
    disks = [hosts.folder / name / f"0-{seen.name}" for name in hosts.names]
    make_project(disks[0], data)
    never = make_project(tmp_path / "never", data)

    def train(steps: int) -> str:
        settings = ("checkpoint.copies=2", "train.trace=true", f"train.steps={steps}")
        arguments = [str(seen / "job.toml"), *(word for one in settings for word in ("--set", one))]
        launch = hosts.launch_command({"h0": 1, "h1": 1}, [sys.executable, "-m", "hpcvol.cli", "train", *arguments])
        done = hosts.run("h0", launch.argv, variables=launch.environment, seconds=SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = train(3)
    assert "hosts do not share the run directory (kept on h0 and h1)" in said
    assert f"the project {seen} (those without are given its Python files)" in said
    assert f"the data {data}" not in said
    runs = [Project(disk) for disk in disks]
    assert [run.steps("runs/job") for run in runs] == [[3], [3]]
    assert {path.name for path in disks[1].iterdir()} == {"runs"}  # nothing of the project is left on h1
    trace = read_trace(disks[0] / "runs" / "job" / "trace.json")
    assert trace.members == ["member 0 (h0)", "member 1 (h1)"]
    assert [len(trace.named("step", member)) for member in trace.members] == [3, 3]
    check_spans(trace)
    assert not list(disks[1].rglob("*trace*"))

    shutil.rmtree(disks[0] / "runs")
    said = train(6)
    assert "step-00000003 of member 1 (h1) at step 3" in said
    assert never.train("run", "train.steps=6")
    expected = what_decides(never.summary("run"))
    for run in runs:
        assert what_decides(run.summary("runs/job")) == expected
        assert [line["step"] for line in run.metrics("runs/job")] == [1, 2, 3, 3, 4, 5, 6, 6]
        state = json.loads((run.checkpoint("runs/job", 6) / "state.json").read_text())
        assert state["run"]["step"] == 6
