"""The ledger of a run: its chain, and who goes on with it."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.elastic.ledger import Head, Ledger, from_ranges, hash_of, ranges
from hpcvol.errors import HpcvolError
from hpcvol.train.ledger_account import read_account, verify_lines

BEGINNING = {"members": [0, 1], "hosts": ["a", "b"], "samples": 20, "batch_size": 8, "unit_size": 2, "view": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def begin(ledger: Ledger, head: Head | None = None, version: int = 0) -> None:
    ledger.begin(head or Head())
    ledger.event("resume" if version else "start", version=version, **BEGINNING)


def commit(ledger: Ledger, version: int, view: int = 1) -> None:
    """Enter a step of 8 samples, or of the 4 that are left, in units of 2 over two members."""
    count = 2 if version % 3 == 0 else 4
    halves = range(count // 2), range(count // 2, count)
    members = {
        str(member): {"units": ranges(units), "samples": 2 * len(units), "seconds": 0.5}
        for member, units in enumerate(halves)
    }
    ledger.version(version, view=view, digest=f"{version:032x}", members=members)


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def trouble(path: Path) -> list[str]:
    account = read_account(path.parent)
    assert account is not None
    assert account.tail == 0
    return [one.removeprefix(f"{path}: ") for one in verify_lines(account)]


def test_lines_are_chained_and_the_head_is_the_last(path: Path) -> None:
    ledger = Ledger(path)
    begin(ledger)
    for version in range(1, 5):
        commit(ledger, version)
    ledger.close()
    lines = path.read_bytes().splitlines()
    assert ledger.head == Head(hash_of(lines[-1]), 5)
    assert json.loads(lines[0])["prev"] == Head().hash
    for before, line in pairwise(lines):
        assert json.loads(line)["prev"] == hash_of(before)
    assert trouble(path) == []


def test_all_members_have_one_head(path: Path) -> None:
    writes, remembers = Ledger(path), Ledger(None)
    for ledger in (writes, remembers):
        begin(ledger)
        commit(ledger, 1)
    writes.close()
    assert writes.head == remembers.head


@pytest.mark.parametrize("lines", range(5))
@pytest.mark.parametrize("torn", [b"", b'{"prev": "12'])
def test_whoever_takes_over_mends_the_tail_and_writes_what_is_missing(path: Path, lines: int, torn: bytes) -> None:
    one, other = Ledger(path), Ledger(None)
    for ledger in (one, other):
        begin(ledger)
        for version in range(1, 4):
            commit(ledger, version)
    one.close()
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]) + torn)
    other.take_over(path)
    assert path.read_bytes() == whole
    commit(other, 4)
    other.close()
    assert trouble(path) == []
    assert [line.get("version") for line in written(path)] == [0, 1, 2, 3, 4]


def test_whoever_takes_over_long_after_the_beginning_writes_what_is_missing(path: Path) -> None:
    one, other = Ledger(path), Ledger(None)
    for ledger in (one, other):
        begin(ledger)
        for version in range(1, 2500):
            commit(ledger, version)
    one.close()
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:1700]) + b"torn")
    other.take_over(path)
    other.close()
    assert path.read_bytes() == whole


def test_a_member_of_an_older_view_writes_nothing(path: Path) -> None:
    may_write = True
    ledger = Ledger(path, lambda: may_write)
    begin(ledger)
    before = path.read_bytes()
    may_write = False
    commit(ledger, 1)
    ledger.close()
    assert path.read_bytes() == before
    assert ledger.head.lines == 2


def test_a_run_that_goes_on_cuts_off_what_it_makes_again(path: Path) -> None:
    ledger = Ledger(path)
    begin(ledger)
    commit(ledger, 1)
    head = ledger.head
    commit(ledger, 2)
    ledger.close()
    again = Ledger(path)
    begin(again, head, version=1)
    commit(again, 2, view=2)
    again.close()
    assert [line.get("version") for line in written(path)] == [0, 1, 1, 2]
    assert trouble(path) == []


def test_going_on_after_a_ledger_that_was_lost_is_said_and_found(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(path)
    begin(ledger, Head("ab" * 32, 3), version=2)
    ledger.close()
    assert "does not lead to where the checkpoint says" in caplog.text
    assert trouble(path)[0].startswith("line 1 does not follow from the one before")


def test_a_ledger_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(HpcvolError, match=r"cannot write .*: Is a directory; make room"):
        ledger.event("start")


CHANGES = {
    "a share": ('"seconds": 0.5', '"seconds": 9.5', "line 3 does not follow from the one before"),
    "a version": ('"version": 2', '"version": 7', "line 3 is of version 7, after version 1"),
    "a unit twice": ('"0-1"', '"0-2"', "line 2: unit 2 of version 1 was computed 2 times, expected 1"),
    "a unit too many": ('"2-3"', '"2-4"', "line 2: unit 4 of version 1 was computed 1 times, expected 0"),
    "samples": ('"samples": 4', '"samples": 5', "line 2: member 0 has 5 samples of units that hold 4"),
    "an older view": ('"view": 1, "digest"', '"view": 0, "digest"', "line 2 is of view 0, after view 1"),
    "units of no samples": ('"unit_size": 2', '"unit_size": 0', "line 1 is no line of a ledger"),
    "no JSON": ('"digest"', "digest", "line 2 is no line of a ledger"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_is_changed_is_found(path: Path, name: str) -> None:
    ledger = Ledger(path)
    begin(ledger)
    for version in range(1, 4):
        commit(ledger, version)
    ledger.close()
    assert trouble(path) == []
    before, after, words = CHANGES[name]
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    found = "\n".join(trouble(path))
    assert words in found
    assert "does not follow from the one before" in found


def test_a_line_that_is_taken_out_is_found(path: Path) -> None:
    ledger = Ledger(path)
    begin(ledger)
    for version in range(1, 4):
        commit(ledger, version)
    ledger.close()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    assert trouble(path) == [
        "line 3 does not follow from the one before: something was changed or taken out",
        "line 3 is of version 3, after version 1",
    ]


@given(st.sets(st.integers(0, 300)))
def test_ranges_come_back(numbers: set[int]) -> None:
    assert from_ranges(ranges(numbers)) == sorted(numbers)


def test_ranges_are_short() -> None:
    assert ranges([5, 0, 1, 2, 7, 8]) == "0-2,5,7-8"
