"""The benchmark of overlap, which starts virtual hosts of its own."""

import json
import sys
from pathlib import Path

import pytest
from lab_needs import hosts_are_needed
from launched import RunProgram

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "overlap.py"


@pytest.mark.any_mpi
@pytest.mark.limit_seconds(400)
def test_overlap(tmp_path: Path, run_program: RunProgram) -> None:
    """It measures, and the exact sum's integers travel between hosts in 32 bits."""
    hosts_are_needed()
    json_file = tmp_path / "rows.json"
    argv = [sys.executable, str(BENCHMARK), "--quick", "--part", "overlap", "--json", str(json_file)]
    done = run_program(argv, seconds=350)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [row for row in json.loads(json_file.read_text())["rows"] if row["contender"] == "overlapped"]
    assert [row["case"] for row in steps] == ["float, 1 unit", "float, 4 units", "exact, 1 unit", "exact, 4 units"]
    assert all(3.9 < row["sent/parameter"] < 4.5 for row in steps)
    assert all("hidden" in row for row in steps)
