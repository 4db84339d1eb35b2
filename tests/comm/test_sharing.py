"""Which ranks share a directory: ranks of one machine play several hosts, with folders of their own."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from two_hosts import as_hosts

from hpcvol.comm import ABSENT, Group, shared, sharing


def make(group: Group, root: Path, names: Sequence[str | None]) -> Path:
    """Make the folders that `names` says, by rank; return this rank's, which does not exist where it is None."""
    if group.rank == 0:
        for name in filter(None, names):
            (root / name).mkdir(exist_ok=True)
    group.barrier()
    return root / (names[group.rank] or "none")


CASES: dict[str, tuple[list[str | None], list[int]]] = {
    "all share": (["a", "a", "a"], [0, 0, 0]),
    "none share": (["a", "b", "c"], [0, 1, 2]),
    "the first alone": (["a", "b", "b"], [0, 1, 1]),
    "the last alone": (["a", "a", "b"], [0, 0, 2]),
    "the second alone": (["a", "b", "a"], [0, 1, 0]),
    "one has none": (["a", None, "a"], [0, ABSENT, 0]),
    "the first has none": ([None, "b", "b"], [ABSENT, 1, 1]),
    "nobody has one": ([None, None, None], [ABSENT, ABSENT, ABSENT]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_three_hosts(group: Group, shared_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_PATIENCE_SECONDS", 0.1)
    names, expected = CASES[case]
    path = make(group, shared_path, names)
    with as_hosts(group, [0, 1, 2]) as hosts:
        found, same = shared(hosts, [path, shared_path])
    assert found.first == tuple(expected)
    assert found.by_all == (expected == [0, 0, 0])
    assert same.by_all
    for one in range(3):
        for other in range(3):
            assert found.same(one, other) == (names[one] == names[other] is not None)
    group.barrier()
    assert not list(shared_path.rglob(".hpcvol*"))


@pytest.mark.parametrize("group", [4], indirect=True, ids=["4ranks"])
def test_one_rank_looks_for_its_node(group: Group, shared_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_PATIENCE_SECONDS", 0.1)
    path = make(group, shared_path, ["a", "b", "a", "b"])
    looked: list[Path] = []
    monkeypatch.setattr(sharing, "_is_at", lambda path, mark: looked.append(path) or (path / str(mark)).exists())
    with as_hosts(group, [0, 1, 0, 1]) as hosts:
        (found,) = shared(hosts, [path])
    assert found.first == (0, 1, 0, 1)
    assert bool(looked) == (group.rank < 2)


def test_on_one_node_nothing_is_touched(group: Group, shared_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_make", None)
    assert shared(group, [shared_path / "not there"])[0].by_all


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_a_name_that_comes_late_is_waited_for(group: Group, shared_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an NFS client that has the folder's old content in its cache."""
    looks = 0
    real = sharing._is_at

    def late(path: Path, mark: sharing._Mark | None) -> bool:
        nonlocal looks
        looks += 1
        return looks > 9 and real(path, mark)

    monkeypatch.setattr(sharing, "_is_at", late)
    with as_hosts(group, [0, 1, 2]) as hosts:
        (found,) = shared(hosts, [shared_path])
    assert found.by_all
    assert looks > 9


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_folders_that_nobody_can_write(group: Group, shared_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_PATIENCE_SECONDS", 0.1)

    def refuse(self: Path, **_: bool) -> None:
        raise PermissionError(13, os.strerror(13), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    path = make(group, shared_path, ["a", "b", "a"])
    with as_hosts(group, [0, 1, 2]) as hosts:
        assert shared(hosts, [path])[0].first == (0, 1, 0)
