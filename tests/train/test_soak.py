"""Members killed at random, and replaced, in one run: a small soak."""

import json
import sys
from pathlib import Path

import pytest
from launched import RunProgram

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"


@pytest.mark.limit_seconds(900)
def test_a_small_soak(tmp_path: Path, run_program: RunProgram) -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("ranks outlive the death of others under Open MPI only")
    json_file = tmp_path / "rows.json"
    ended = run_program([sys.executable, str(BENCHMARK), "--quick", "--json", str(json_file)], seconds=800)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 kills" in ended.stdout
    assert "same digests: True" in ended.stdout
    contenders = [row["contender"] for row in json.loads(json_file.read_text())["rows"]]
    assert contenders == ["step", "death", "start", "join"]
    _, longest = ended.stdout.split("The longest pauses:")
    assert "is killed" in longest or "has joined" in longest
