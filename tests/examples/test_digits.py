"""The example digits, as a user runs it."""

import json
import sys
from pathlib import Path

import pytest
from launched import RunProgram


@pytest.mark.any_mpi
@pytest.mark.limit_seconds(240)
def test_over_95_percent_of_unseen_digits_are_read(run_program: RunProgram, tmp_path: Path) -> None:
    hpcvol = [sys.executable, "-m", "hpcvol.cli"]
    assert run_program([*hpcvol, "new", str(tmp_path / "demo"), "--example", "digits"]).returncode == 0
    done = run_program([*hpcvol, "train", str(tmp_path / "demo" / "job.toml"), "-n", "2"], seconds=180)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "demo" / "runs" / "job" / "summary.json").read_text())
    assert summary["completed"] is True
    assert summary["metrics"]["test"]["accuracy"] > 0.95
