"""The benchmark of recovery, which kills members and cuts off a virtual host."""

import json
import sys
from pathlib import Path

import pytest
from lab_needs import hosts_are_needed
from launched import RunProgram

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "recovery.py"


@pytest.mark.limit_seconds(600)
def test_recovery(tmp_path: Path, run_program: RunProgram) -> None:
    """It finds a pause for each member that it kills and for the one that comes instead, and one for a cut."""
    hosts_are_needed()
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("members outlive others under Open MPI only")
    json_file = tmp_path / "rows.json"
    done = run_program([sys.executable, str(BENCHMARK), "--quick", "--json", str(json_file)], seconds=550)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["case"]: row for row in json.loads(json_file.read_text())["rows"]}
    assert {case: row["repetitions"] for case, row in rows.items()} == {"dies": 1, "starts": 1, "joins": 1, "cut": 1}
    # Less would be a cut that nobody had to notice.
    assert rows["cut"]["seconds"]["min"] > 0.5
