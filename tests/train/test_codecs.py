"""Runs whose gradients are encoded: they learn as well, and what members have not sent outlives leaves and resumes."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from digits_project import Project, first_ranks
from launched import RunProgram

from hpcvol.comm import Group
from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of
from hpcvol.train.checkpoint_files import RESIDUALS
from hpcvol.train.verify import verify_run

SECONDS = 240.0
FLOAT = "train.sum=float"
LEARNING = (FLOAT, "train.steps=200", "model.args.width=128", "optimizer.schedule=cosine")
CODECS = ["bf16", "fp8", "int8", "int4", "sign", "ternary", "qsgd:7", "topk:0.05", "topk:0.05+int8", "randomk:0.25"]
CODECS += ["threshold:0.002", "powersgd:4"]

striking = pytest.mark.skipif(
    vendor_of(loaded_library()) != OPEN_MPI, reason="members part, and outlive others, under Open MPI only"
)


def accuracy(project: Project, group: Group, run: str, codec: str) -> float:
    assert project.train(run, *LEARNING, f"strategy.codec={codec}", group=group)
    found: float = project.summary(run)["metrics"]["test"]["accuracy"]
    return found


@pytest.mark.limit_seconds(400)
def test_every_codec_is_within_one_point_of_the_accuracy_without(group: Group, shared_project: Project) -> None:
    if group.size != 2:
        pytest.skip("two ranks are enough to send")
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("what codecs do does not depend on the MPI")
    plain = accuracy(shared_project, group, "plain", "none")
    assert plain > 0.95
    found = {codec: accuracy(shared_project, group, f"run{place}", codec) for place, codec in enumerate(CODECS)}
    assert {codec: one for codec, one in found.items() if one < plain - 0.01} == {}


@pytest.mark.limit_seconds(200)
def test_momentum_that_is_compressed_is_within_one_point_of_the_optimizers(
    group: Group, shared_project: Project
) -> None:
    if group.size != 2 or vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("as above")
    sgd = (*LEARNING, "optimizer.name=SGD")
    assert shared_project.train("plain", *sgd, "optimizer.args={lr=0.5, momentum=0.9}", group=group)
    # What is sent begins anew without momentum, so that the best rate is a higher one.
    selected = ("optimizer.args={lr=1.0}", "strategy.codec=topk:0.05+dgc:100")
    assert shared_project.train("selected", *sgd, *selected, group=group)
    found = [shared_project.summary(run)["metrics"]["test"]["accuracy"] for run in ("plain", "selected")]
    assert found[0] > 0.95
    assert found[1] > found[0] - 0.01


@pytest.mark.parametrize("codec", ["topk:0.1", "int8", "powersgd:2"])
def test_the_sum_of_residuals_goes_on_at_another_number_of_ranks(
    group: Group, shared_project: Project, codec: str
) -> None:
    if group.size == 1:
        pytest.skip("one rank sends nothing")
    overrides = (FLOAT, f"strategy.codec={codec}")
    assert shared_project.train("run", *overrides, group=group)
    stored = safetensors.numpy.load_file(shared_project.checkpoint("run", 6) / RESIDUALS)["float32"]
    assert stored.any()
    with first_ranks(group, group.size - 1) as fewer:
        if fewer is None:
            return
        trainer = shared_project.trainer("run", *overrides, "train.steps=12", group=fewer)
        resumed = trainer.run.residuals.gathered()["float32"].numpy()
        np.testing.assert_allclose(resumed, stored, rtol=1e-6)
        assert trainer.fit()


def struck(
    project: Project, run_program: RunProgram, run: str, strikes: list[list[Any]], *more: str, spares: int = 0
) -> list[dict[str, Any]]:
    """Train with three members of whom some are struck; return the ledger."""
    harness = str(Path(__file__).parents[1] / "harness")
    begin = f"import sys; sys.path.insert(0, {harness!r}); import strikes; strikes.install()\n"
    begin += "from hpcvol.train import stopping; stopping._ALL_SECONDS = 0.0\n"
    code = (project.folder / "digits.py").read_text()
    project.write("digits.py", code.replace("\nimport ", f"\n{begin}import ", 1))
    overrides = (
        FLOAT,
        "strategy.codec=topk:0.1",
        "train.steps=12",
        "checkpoint.every_steps=3",
        f"elastic.spares={spares}",
        *more,
    )
    argv = [sys.executable, "-m", "hpcvol.cli", "train", str(project.job), "-n", str(3 + spares)]
    argv += [part for override in overrides for part in ("--set", override)]
    variables = {"STRIKES": json.dumps(strikes), "STRUCK": str(project.folder)}
    ended = run_program([*argv, "--run-dir", str(project.folder / run)], variables=variables, seconds=SECONDS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for member, point, *_ in strikes:
        assert (project.folder / f"struck-{member}-{str(point).replace(' ', '_')}").exists(), f"{point} was not reached"
    found = verify_run(project.folder / run)
    assert (found.damaged, found.notes) == ([], [])
    lines = [json.loads(line) for line in (project.folder / run / "ledger.jsonl").read_text().splitlines()]
    assert [line["version"] for line in lines if "event" not in line] == list(range(1, 13))
    return lines


@striking
@pytest.mark.limit_seconds(250)
def test_what_a_killed_member_had_not_sent_is_in_the_ledger(project: Project, run_program: RunProgram) -> None:
    # All hold a shard: one of two copies dies, and what is left of the other's is on two members again.
    for run, point, *more in (
        ("struck", "all-reduce encoded"),
        ("served", "reduce-scatter encoded", "strategy.kind=parameter_server", "strategy.replicas=1"),
    ):
        lines = struck(project, run_program, run, [[1, point, 6]], *more)
        lost = [line for line in lines if line.get("event") == "residual lost"]
        assert [line["who"] for line in lost] == [["member 1"]]
        assert lost[0]["norm"] > 0


@striking
@pytest.mark.limit_seconds(250)
def test_who_leaves_takes_nothing_along(project: Project, run_program: RunProgram) -> None:
    lines = struck(project, run_program, "left", [[1, "backward", 6, "SIGTERM"]])
    assert [line["event"] for line in lines if line.get("event") in ("leave", "residual lost")] == ["leave"]


@striking
@pytest.mark.limit_seconds(250)
def test_a_newcomer_tells_the_same_as_the_others(project: Project, run_program: RunProgram) -> None:
    """Of all residuals that were lost, also of members that die as it joins; it takes the run over."""
    strikes: list[list[Any]] = [[1, "all-reduce encoded", 4], [0, "welcome", 1], [2, "optimizer", 7]]
    lines = struck(project, run_program, "joined", strikes, spares=2)
    events = [(line["event"], line["who"]) for line in lines if line.get("event") in ("join", "residual lost")]
    lost = [who for event, who in events if event == "residual lost"]
    assert lost == [["member 1"], ["member 0"], ["member 2"]]
    assert "join" in [event for event, _ in events]
