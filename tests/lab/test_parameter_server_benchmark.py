"""The benchmark of servers, on one node and between virtual hosts that it starts itself."""

import json
import sys
from pathlib import Path

import pytest
from lab_needs import hosts_are_needed
from launched import RunProgram

from hpcvol.comm import launch_command

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "parameter_server.py"


@pytest.mark.limit_seconds(150)
def test_on_one_node(tmp_path: Path, run_program: RunProgram) -> None:
    json_file = tmp_path / "rows.json"
    launch = launch_command(2, [sys.executable, str(BENCHMARK), "--quick", "--json", str(json_file)])
    done = run_program(launch.argv, variables=launch.environment, seconds=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["contender"]: row for row in json.loads(json_file.read_text())["rows"]}
    assert {"shared", "point_to_point", "one_server", "memcpy"} <= set(rows)
    assert all(row["case"] == "push_pull" and row["of_memcpy"] > 0 for row in rows.values())


@pytest.mark.limit_seconds(150)
def test_between_hosts(tmp_path: Path, run_program: RunProgram) -> None:
    hosts_are_needed()
    json_file = tmp_path / "rows.json"
    done = run_program([sys.executable, str(BENCHMARK), "--hosts", "--quick", "--json", str(json_file)], seconds=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["contender"]: row for row in json.loads(json_file.read_text())["rows"]}
    assert rows["messages"]["of_sendrecv"] > 0
