"""Trained runs of supernodes: they learn as well, go on from checkpoints, and all that is written holds together."""

import json

import pytest
from digits_project import Project

from hpcvol.comm import Group
from hpcvol.elastic.ledger import LEDGER_NAME
from hpcvol.errors import ConfigError
from hpcvol.train.verify import verify_run

APART = ("train.sum=float", "strategy.groups=2", "strategy.between.period=4")


@pytest.mark.limit_seconds(200)
def test_they_learn_as_well(group: Group, shared_project: Project) -> None:
    if group.size != 4:
        pytest.skip("once is enough")
    learning = ("train.sum=float", "train.steps=200", "model.args.width=128", "optimizer.schedule=cosine")
    more = (*APART, "strategy.between.period=10", "strategy.between.codec=int8")
    assert shared_project.train("together", *learning, group=group)
    assert shared_project.train("apart", *learning, *more, group=group)
    together, apart = (shared_project.summary(run)["metrics"]["test"]["accuracy"] for run in ("together", "apart"))
    assert together > 0.95
    assert apart > together - 0.01


def test_what_is_written_holds_together(group: Group, shared_project: Project) -> None:
    if group.size < 2:
        pytest.skip("one member is no groups")
    project = shared_project
    more = (*APART, "train.steps=23", "train.validate_every_steps=5", "checkpoint.every_steps=7")
    assert project.train("run", *more, group=group)
    if group.rank == 0:
        lines = [json.loads(line) for line in (project.folder / "run" / LEDGER_NAME).read_text().splitlines()]
        written = [line for line in lines if "event" not in line]
        assert [line["version"] for line in written] == list(range(1, 24))
        met = [line["version"] for line in written if line["digest"] is not None]
        assert met == [4, 5, 7, 8, 10, 12, 14, 15, 16, 20, 21, 23]
        assert all(set(line["members"]) == {str(member) for member in range(group.size)} for line in written)
        found = verify_run(project.folder / "run")
        assert (found.damaged, found.notes) == ([], [])
        metrics = [line for line in project.metrics("run") if "loss" in line]
        assert [line["step"] for line in metrics] == list(range(1, 24))
        assert project.steps("run") == [21, 23]
    group.barrier()


def test_going_on_from_a_checkpoint_is_as_if_there_had_been_no_end(group: Group, shared_project: Project) -> None:
    if group.size < 2:
        pytest.skip("one member is no groups")
    project = shared_project
    more = (*APART, "checkpoint.every_steps=6", "strategy.between.codec=bf16")
    assert project.train("whole", *more, "train.steps=18", group=group)
    assert project.train("parts", *more, "train.steps=12", group=group)
    assert project.train("parts", *more, "train.steps=18", group=group)
    assert project.summary("whole")["weights_sha256"] == project.summary("parts")["weights_sha256"]


def test_what_cannot_be_is_refused(project: Project) -> None:
    for more, says in (
        (("strategy.between.period=4",), "strategy.groups"),
        (("strategy.groups=2", "strategy.between.period=4"), "groups go apart"),
        ((*APART, "strategy.kind=parameter_server"), "parameter_server"),
        ((*APART, "strategy.groups=rack"), "groups"),
    ):
        with pytest.raises(ConfigError, match=says):
            project.train("run", *more)
