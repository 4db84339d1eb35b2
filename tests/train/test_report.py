"""What the first member tells: lines or one redrawn line, and metrics that survive a kill."""

import json
from pathlib import Path

import pytest
from digits_project import Project

from hpcvol.errors import HpcvolError
from hpcvol.train.report import Report, duration


def test_plain_lines_where_there_is_no_terminal(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HPCVOL_TERMINAL", raising=False)
    assert project.train("run", "train.log_every_steps=3")
    said = capsys.readouterr().out
    assert "\r" not in said
    assert "\x1b" not in said
    lines = said.splitlines()
    assert lines[0].startswith("batch 64 = 8 units of 8 over 1 worker; 1258 samples, 20 steps an epoch, 6 steps; ")
    assert [line.split()[1] for line in lines if line.startswith("step ") and "samples/s" in line] == ["3/6", "6/6"]
    assert lines[-1] == f"weights_sha256 {project.summary('run')['weights_sha256']}"


def test_one_line_is_redrawn_on_a_terminal(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCVOL_TERMINAL", "30")
    assert project.train("run")
    said = capsys.readouterr().out
    drawn = [part.partition("\r")[0] for part in said.split("\r\x1b[K") if part.startswith("step 1/6")]
    assert drawn
    assert all(len(line) <= 29 and "\n" not in line for line in drawn)
    kept = [line for line in said.replace("\r\x1b[K", "\n").splitlines() if "samples/s" in line]
    assert not [line for line in said.split("\n") if line.startswith("step ") and "samples/s" in line]
    assert len(kept) <= 6
    assert said.endswith("\n")


def test_the_line_is_erased_before_one_that_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path / "metrics.jsonl", None, 20)
    report.progress("x" * 50, stays=True)
    report.say("stays")
    report.close()
    assert capsys.readouterr().out == "\r\x1b[K" + "x" * 19 + "\r\x1b[K" + "stays\n"


def test_metrics_of_steps_that_are_made_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    report = Report(path, None, None)
    for step in range(1, 5):
        report.metrics(step, {"loss": step / 2})
    with path.open("ab") as file:
        file.write(b'{"step": 1, "lo\xff\xfe')  # a torn block
    report.forget_after(2)
    report.metrics(3, {"loss": float("inf"), "val": {"loss": float("nan")}})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": None, "val": {"loss": None}},
    ]


def test_metrics_that_cannot_be_written_are_one_error() -> None:
    report = Report(Path("/dev/full"), None, None)
    with pytest.raises(HpcvolError, match=r"cannot write /dev/full: No space left on device; make room"):
        report.metrics(1, {"loss": 1.0})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599.4, "59:59"), (3661, "1:01:01")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
