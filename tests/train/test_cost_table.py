"""The costs of collectives in the run directory: measured once, reused by a run that goes on, the same for all."""

import json
from pathlib import Path
from typing import Any

import pytest
from digits_project import Project

from hpcvol.collectives import Table, algorithms, choose
from hpcvol.collectives.algorithms import CANDIDATES
from hpcvol.collectives.table import Cost, Level
from hpcvol.comm import Group
from hpcvol.train.cost_table import COLLECTIVES_NAME, keep_costs, recall_costs


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Level]:
    """Which levels were measured, in place of measuring; each time with other results."""
    levels: list[Level] = []

    def pretend(_: Group, level: Level) -> Any:
        levels.append(level)
        return {name: Cost(1e-6 * len(levels), 1e-9) for name in CANDIDATES}

    monkeypatch.setattr(choose, "measure_level", pretend)
    monkeypatch.setattr(algorithms.OnNode, "usable", lambda *_: False)  # else there is nothing to measure on one node
    monkeypatch.setattr(choose, "_own", Table({}))
    return levels


def forget(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    group.kept.pop("chooser", None)
    monkeypatch.setattr(choose, "_own", Table({}))


def test_a_run_that_goes_on_uses_the_costs_that_it_began_with(
    group: Group, shared_project: Project, measured: list[Level], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shared_project.folder / "run" / COLLECTIVES_NAME
    assert shared_project.train("run", "train.sum=float", "train.steps=2", group=group)
    assert measured == (["node"] if group.size > 1 else [])
    assert file.exists() == (group.size > 1)
    if group.size == 1:
        return
    before = file.read_text()
    assert Table.from_json(before).covers(["node"])
    group.barrier()
    forget(group, monkeypatch)
    assert shared_project.train("run", "train.sum=float", "train.steps=4", group=group)
    assert measured == ["node"]
    assert file.read_text() == before
    group.barrier()
    forget(group, monkeypatch)
    assert shared_project.train("run", "train.sum=float", "train.steps=2", group=group, fresh=True)
    assert measured == ["node", "node"]
    assert file.read_text() != before


def test_what_cannot_be_read_is_measured_again(group: Group, shared_path: Path, measured: list[Level]) -> None:
    if group.rank == 0:
        (shared_path / COLLECTIVES_NAME).write_text('{"format": 1, "costs": {"no')
    group.barrier()
    recall_costs(group, shared_path, fresh=False)
    keep_costs(group, shared_path, "ring", keeps=group.rank == 0)
    assert measured == []
    keep_costs(group, shared_path, "auto", keeps=group.rank == 0)
    assert measured == (["node"] if group.size > 1 else [])
    if group.size > 1:
        assert json.loads((shared_path / COLLECTIVES_NAME).read_text())["format"] == 1


def test_the_file_of_the_first_member_that_sees_one_holds(group: Group, tmp_path: Path, measured: list[Level]) -> None:
    """Hosts with other files of costs in directories of their own: all take one."""
    if group.rank > 0:
        costs = {name: Cost(1e-6 * group.rank, 1e-9) for name in CANDIDATES}
        (tmp_path / COLLECTIVES_NAME).write_text(Table({"node": costs}).to_json())
    recall_costs(group, tmp_path, fresh=False)
    keep_costs(group, tmp_path, "auto", keeps=True)
    assert measured == []
    if group.size > 1:
        texts = group.gather_objects((tmp_path / COLLECTIVES_NAME).read_text())
        assert set(texts) == {texts[0]}
        assert Table.from_json(texts[0]).costs["node"]["ring"] == Cost(1e-6, 1e-9)
