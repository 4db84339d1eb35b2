"""Trained runs whose members do not wait for each other: they learn as well, and all that is written holds together."""

import json
from collections import Counter
from typing import Any

import pytest
from digits_project import Project

from hpcvol.comm import Group
from hpcvol.elastic.ledger import LEDGER_NAME
from hpcvol.errors import ConfigError
from hpcvol.train.verify import verify_run

# Asks the run to stop in the middle, while nobody waits for anybody.
STOPPER = """
import os, signal
from pathlib import Path
import digits

def build(**args):
    model, count = digits.build(**args), 0
    def look(*_):
        nonlocal count
        count += 1
        if count == 9 and Path(__file__).with_name("stops").exists():
            os.kill(os.getpid(), signal.SIGUSR1)
    model.register_forward_hook(look)
    return model
"""

STALE = ("strategy.kind=parameter_server", "train.sum=float", "strategy.max_staleness=inf")
LEARNING = ("train.sum=float", "train.steps=200", "model.args.width=128", "optimizer.schedule=cosine")


def lines(project: Project, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project.folder / run / LEDGER_NAME).read_text().splitlines()]


@pytest.mark.limit_seconds(300)
def test_it_is_within_one_point_of_the_accuracy_of_who_wait(group: Group, shared_project: Project) -> None:
    if group.size != 4:
        pytest.skip("more are staler")
    assert shared_project.train("together", *LEARNING, group=group)
    wanted = shared_project.summary("together")["metrics"]["test"]["accuracy"]
    assert wanted > 0.95
    for name, more in (("inf", STALE), ("ssp", (*STALE[:2], "strategy.max_staleness=2", "strategy.servers=1"))):
        assert shared_project.train(name, *LEARNING, *more, group=group)
        assert shared_project.summary(name)["metrics"]["test"]["accuracy"] > wanted - 0.01


def test_what_is_written_holds_together(group: Group, shared_project: Project) -> None:
    project = shared_project
    more = (*STALE, "train.steps=23", "train.validate_every_steps=5", "checkpoint.every_steps=7")
    assert project.train("run", *more, group=group)
    if group.rank == 0:
        written = [line for line in lines(project, "run") if "event" not in line]
        assert [line["version"] for line in written] == list(range(1, 24))
        assert sorted(line["step"] for line in written) == list(range(23))
        met = [line["version"] for line in written if line["digest"] is not None]
        assert met == [5, 7, 10, 14, 15, 20, 21, 23]
        found = verify_run(project.folder / "run")
        assert (found.damaged, found.notes) == ([], [])
        metrics = [line for line in project.metrics("run") if "loss" in line]
        assert [line["step"] for line in metrics] == list(range(1, 24))
        missed: Counter[str] = Counter()
        for line in metrics:
            missed.update(line["staleness"]["missed"])
        assert missed.total() == 23
        assert project.steps("run") == [21, 23]
    group.barrier()


@pytest.mark.parametrize("period", [1, 3])
def test_groups_of_members_push(group: Group, shared_project: Project, period: int) -> None:
    if group.size < 3:
        pytest.skip("a server and two groups")
    project = shared_project
    groups = ("strategy.servers=1", "strategy.groups=2", f"strategy.between.period={period}")
    more = (*STALE, *groups, "train.steps=23", "train.validate_every_steps=5", "checkpoint.every_steps=7")
    assert project.train(f"run{period}", *more, group=group)
    if group.rank == 0:
        written = [line for line in lines(project, f"run{period}") if "event" not in line]
        assert [line["version"] for line in written] == list(range(1, 24))
        assert sorted(line["step"] for line in written) == list(range(23))
        teams = [[str(one) for one in team] for team in ([[0], [2]] if group.size == 3 else [[0, 2], [3]])]
        assert all(list(line["members"]) in teams for line in written)
        found = verify_run(project.folder / f"run{period}")
        assert (found.damaged, found.notes) == ([], [])
        assert project.steps(f"run{period}") == [21, 23]
    group.barrier()


def test_stopped_and_resumed(group: Group, shared_project: Project) -> None:
    project = shared_project
    more = (*STALE, "train.steps=60", "strategy.rate_by_staleness=true", "model.build=stopper.py:build")
    if group.rank == 0:
        project.write("stopper.py", STOPPER)
        project.write("stops", "")
    group.barrier()
    assert not project.train("run", *more, group=group)
    if group.rank == 0:
        (project.folder / "stops").unlink()
    group.barrier()
    assert project.train("run", *more, group=group)
    if group.rank == 0:
        written = [line for line in lines(project, "run") if "event" not in line]
        assert [line["version"] for line in written] == list(range(1, 61))
        (stop,) = [line for line in lines(project, "run") if line.get("event") == "resume"]
        assert 8 <= stop["version"] < 40
        found = verify_run(project.folder / "run")
        assert (found.damaged, found.notes) == ([], [])
    group.barrier()


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ((*STALE[:1], "strategy.max_staleness=2"), "strategy.max_staleness above 0 with sum"),
        ((*STALE[:2], "strategy.max_staleness=1.5"), "strategy.max_staleness = 1.5: expected 0"),
        ((*STALE[:2], "strategy.max_staleness=-1"), "strategy.max_staleness"),
        ((*STALE[:2], "strategy.rate_by_staleness=true"), "no step is stale"),
        (("strategy.max_staleness=2",), "are for strategy.kind ="),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    project: Project, overrides: tuple[str, ...], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        project.config(*overrides)
