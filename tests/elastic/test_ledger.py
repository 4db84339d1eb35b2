"""The ledger: chained, mended where it is torn, and no change of it goes unseen."""

import json
from pathlib import Path

import pytest

from hpcvol.elastic.ledger import BEGINNING, Ledger, digest_of, read_ledger


def written(path: Path, number: int) -> Ledger:
    ledger = Ledger(path)
    for version in range(ledger.version + 1, ledger.version + number + 1):
        ledger.write({"version": version, "members": [0, 1], "seconds": 0.25})
    ledger.sync()
    return ledger


def test_lines_continue_each_other_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert Ledger(path).head == BEGINNING
    head = written(path, 3).head
    again = Ledger(path)
    assert (again.head, again.version) == (head, 3)
    written(path, 2)
    lines = list(read_ledger(path))
    assert [line.entry["version"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[2].digest == head
    assert lines[3].digest == digest_of(head, lines[3].entry)


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_taken_away(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "ledger.jsonl"
    head = written(path, 2).head
    whole = path.read_bytes()
    written(path, 1)
    last = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + last[:kept])
    assert len(list(read_ledger(path))) == 2
    ledger = Ledger(path)
    assert (ledger.head, ledger.version) == (head, 2)
    assert path.read_bytes() == whole
    ledger.write({"version": 3, "members": [0, 1], "seconds": 0.25})
    assert path.read_bytes() == whole + last, "the same line, whoever writes it"


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
        Ledger(path)
