"""When a run counts as complete."""

import json
from pathlib import Path

import pytest

from hpcvol.elastic.ledger import LEDGER_NAME
from hpcvol.train.completion import SUMMARY_NAME, Completion


def write(folder: Path, completed: bool) -> None:
    aside = folder / "aside"
    aside.write_text(json.dumps({"completed": completed}))
    aside.replace(folder / SUMMARY_NAME)


def test_no_summary_is_not_complete_whatever_the_status(tmp_path: Path) -> None:
    assert not Completion(tmp_path / "none").is_complete(0)


def test_a_new_summary_counts_whatever_the_status(tmp_path: Path) -> None:
    completion = Completion(tmp_path)
    write(tmp_path, completed=True)
    assert completion.is_complete(0)
    assert completion.is_complete(1)


def test_an_old_summary_counts_only_with_status_0(tmp_path: Path) -> None:
    write(tmp_path, completed=True)
    completion = Completion(tmp_path)
    assert completion.is_complete(0)
    assert not completion.is_complete(1)
    write(tmp_path, completed=True)
    assert completion.is_complete(1)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"completed": false}', '{"completed": 1}', "\udcff"])
def test_other_files_are_not_complete(tmp_path: Path, text: str) -> None:
    completion = Completion(tmp_path)
    (tmp_path / SUMMARY_NAME).write_bytes(text.encode(errors="surrogateescape"))
    assert not completion.is_complete(0)


def test_a_run_has_stopped_where_its_ledger_ends_so(tmp_path: Path) -> None:
    ledger = tmp_path / LEDGER_NAME
    ledger.write_text('{"version": 1}\n{"event": "stop", "version": 1}\n')
    completion = Completion(tmp_path)
    assert not completion.has_stopped()  # that was the run before
    for text, stopped in (('{"version": 1}\n', False), ('{"event": "stop"}\n', True), ("{", False), ("[]\n", False)):
        aside = tmp_path / "aside"
        aside.write_text('{"version": 0}\n' * 10_000 + text)
        aside.replace(ledger)
        assert completion.has_stopped() == stopped, text
    assert not Completion(tmp_path / "none").has_stopped()
