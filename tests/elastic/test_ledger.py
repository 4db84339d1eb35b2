"""The ledger: chained, mended where it is torn, and no change of it goes unseen."""

import json
from pathlib import Path

import pytest

from hpcvol.elastic.ledger import BEGINNING, Ledger, digest_of, head_of, read_ledger


def entry(version: int) -> dict[str, object]:
    return {"version": version, "members": [0, 1], "seconds": 0.25}


def written(path: Path, number: int) -> Ledger:
    """Go on with the ledger at `path` for so many versions."""
    ledger = Ledger(head_of(path))
    ledger.write_to(path)
    first = len(list(read_ledger(path))) + 1
    for version in range(first, first + number):
        ledger.record(entry(version))
    ledger.sync()
    return ledger


def test_lines_continue_each_other_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert head_of(path) == BEGINNING
    head = written(path, 3).head
    assert head_of(path) == head
    written(path, 2)
    lines = list(read_ledger(path))
    assert [line.entry["version"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[2].digest == head
    assert lines[3].digest == digest_of(head, lines[3].entry)


@pytest.mark.parametrize("kept", [0, 1, 20, -1])
@pytest.mark.parametrize("before", [0, 2, 40])
def test_whoever_takes_over_mends_a_torn_line_and_writes_what_is_missing(
    tmp_path: Path, kept: int, before: int
) -> None:
    first, second = Ledger(), Ledger()
    path = tmp_path / "ledger.jsonl"
    first.write_to(path)
    for version in range(1, before + 1):
        first.record(entry(version))
        second.record(entry(version))
    whole = path.read_bytes() if before else b""
    for version in range(before + 1, before + 4):
        first.record(entry(version))
        second.record(entry(version))
    undisturbed = path.read_bytes()
    lost = undisturbed[len(whole) :].splitlines(keepends=True)[0]
    path.write_bytes(whole + lost[:kept])
    second.write_to(path)
    assert path.read_bytes() == undisturbed
    second.record(entry(before + 4))
    assert [line.entry["version"] for line in read_ledger(path)] == list(range(1, before + 5))
    assert head_of(path) == second.head


def test_another_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path, 3)
    other = Ledger()
    other.record(entry(7))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not the ledger"):
        other.write_to(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [0, 2, 4])
@pytest.mark.parametrize("change", ["changed", "left out", "twice", "swapped", "no JSON", "no object"])
def test_damage_is_named(tmp_path: Path, line: int, change: str) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path, 6)
    lines = path.read_text().splitlines(keepends=True)
    if change == "changed":
        lines[line] = json.dumps({**json.loads(lines[line]), "seconds": 0.5}) + "\n"
    elif change == "left out":
        del lines[line]
    elif change == "twice":
        lines.insert(line, lines[line])
    elif change == "swapped":
        lines[line], lines[line + 1] = lines[line + 1], lines[line]
    else:
        lines[line] = "{\n" if change == "no JSON" else "3\n"
    path.write_text("".join(lines))
    number = line + 2 if change == "twice" else line + 1
    with pytest.raises(ValueError, match=f"line {number} "):
        list(read_ledger(path))
    with pytest.raises(ValueError, match=f"line {number} "):
        head_of(path)
