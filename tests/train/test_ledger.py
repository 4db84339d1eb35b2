"""The ledger that training keeps: the same versions at any number of ranks, checked against all else of the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from digits_project import Project, first_ranks

from hpcvol.comm import Group
from hpcvol.train.state_digest import SLICE_NBYTES, digest_from, part_of_digest, state_digest
from hpcvol.train.verify import verify_run


def ledger(project: Project, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project.folder / run / "ledger.jsonl").read_text().splitlines()]


def versions(project: Project, run: str) -> dict[int, str]:
    return {line["version"]: line["digest"] for line in ledger(project, run) if "event" not in line}


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_a_line_for_each_version_and_all_of_it_holds_together(group: Group, shared_project: Project, sum: str) -> None:
    overrides = (f"train.sum={sum}", "checkpoint.every_steps=2")
    assert shared_project.train("run", *overrides, group=group)
    with first_ranks(group, 1) as alone:
        if alone is not None:
            assert shared_project.train("alone", *overrides, group=alone)
    lines = ledger(shared_project, "run")
    assert [line.get("event") for line in lines] == ["start", *[None] * 6]
    assert lines[0]["members"] == list(group.members)
    assert [line["version"] for line in lines[1:]] == [1, 2, 3, 4, 5, 6]
    assert all(list(line["members"]) == [str(member) for member in group.members] for line in lines[1:])
    if sum == "exact":
        assert versions(shared_project, "run") == versions(shared_project, "alone")
    for run in ("run", "alone"):
        found = verify_run(shared_project.folder / run)
        assert (found.damaged, found.notes) == ([], [])


def test_a_run_that_goes_on_is_one_ledger(group: Group, shared_project: Project) -> None:
    overrides = ("checkpoint.every_steps=2", "checkpoint.keep=9")
    with first_ranks(group, 1) as alone:
        if alone is not None:
            assert shared_project.train("run", *overrides, group=alone)
            run = shared_project.folder / "run"
            (run / "summary.json").unlink()
            for path in [shared_project.checkpoint("run", 6), *shared_project.checkpoint("run", 4).iterdir()]:
                path.rename(shared_project.folder / f"away-{path.name}")
    before = versions(shared_project, "run")
    group.barrier()
    assert shared_project.train("run", *overrides, group=group)
    assert versions(shared_project, "run") == before
    assert [(line["event"], line["version"]) for line in ledger(shared_project, "run") if "event" in line] == [
        ("start", 0),
        ("resume", 2),
    ]
    assert verify_run(shared_project.folder / "run").damaged == []


STATE = {
    "b": torch.arange(3 * SLICE_NBYTES // 4 + 5, dtype=torch.float32),
    "a": torch.arange(12.0).view(3, 4).t(),
    "empty": torch.zeros(0, 3),
    "number": torch.tensor(3),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "mask": torch.tensor([False, True]),
}


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 11])
def test_the_digest_is_that_of_the_state_however_it_is_shared_out(workers: int, tmp_path: Path) -> None:
    expected = state_digest(STATE)
    assert digest_from(part_of_digest(STATE, worker, workers) for worker in range(workers)) == expected
    safetensors.torch.save_file({name: value.contiguous() for name, value in STATE.items()}, tmp_path / "file")
    assert state_digest(safetensors.torch.load_file(tmp_path / "file")) == expected


@pytest.mark.parametrize("name", [name for name, value in STATE.items() if value.numel()])
def test_another_value_anywhere_is_another_digest(name: str) -> None:
    other = {**STATE, name: STATE[name].clone()}
    other[name][(-1,) * other[name].ndim] = 0
    assert state_digest(other) != state_digest(STATE)


def test_slices_that_change_places_are_another_digest() -> None:
    one = torch.cat([torch.zeros(SLICE_NBYTES // 4), torch.ones(SLICE_NBYTES // 4)])
    assert state_digest({"w": one}) != state_digest({"w": one.flip(0)})


def test_tied_weights_count_once() -> None:
    weight = torch.rand(4)
    assert state_digest({"a": weight, "b": weight}) == state_digest({"a": weight})
