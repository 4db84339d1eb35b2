"""Files passed between hosts: what goes over the network, and the benchmark of how fast, which has its own hosts."""

import json
import sys
from pathlib import Path

import pytest
from lab_needs import hosts_are_needed
from launched import RunProgram
from network_switch import CREDIT_SECONDS
from virtual_hosts import virtual_hosts

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "data_passed.py"
NBYTES = 20_000_000

# On every host the first rank wants the file.
PROGRAM = """
import sys
from pathlib import Path
from hpcvol.comm import start
from hpcvol.comm.files import pass_file
group, folder = start(), Path(sys.argv[1])
wanted = group.node.rank == 0 and group.rank != 0
target = folder / f"target-{group.rank}"
pass_file(group, 0, folder / "source", target if wanted else None)
if wanted:
    assert target.read_bytes() == (folder / "source").read_bytes()
"""


def test_each_host_receives_a_file_once_and_sends_it_at_most_once(tmp_path: Path) -> None:
    hosts_are_needed()
    (tmp_path / "source").write_bytes(bytes(range(256)) * (NBYTES // 256))
    with virtual_hosts(3) as hosts:
        launch = hosts.launch_command({"h0": 2, "h1": 2, "h2": 2}, [sys.executable, "-c", PROGRAM, str(tmp_path)])
        before = hosts.traffic()
        done = hosts.run("h0", launch.argv, variables=launch.environment)
        assert done.returncode == 0, done.stderr
        after = hosts.traffic()
    sent = {host: (after[host].sent_nbytes - before[host].sent_nbytes) / NBYTES for host in after}
    received = {host: (after[host].received_nbytes - before[host].received_nbytes) / NBYTES for host in after}
    assert len(list(tmp_path.glob("target-*"))) == 2
    assert all(0.99 < received[host] < 1.3 for host in ("h1", "h2")), received
    assert all(share < 1.3 for share in sent.values()), sent


@pytest.mark.limit_seconds(200)
def test_the_benchmark(tmp_path: Path, run_program: RunProgram) -> None:
    hosts_are_needed()
    json_file = tmp_path / "rows.json"
    done = run_program([sys.executable, str(BENCHMARK), "--quick", "--json", str(json_file)], seconds=150)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["contender"]: row for row in json.loads(json_file.read_text())["rows"]}
    assert list(rows) == ["tcp", "send", "broadcast", "hpcvol"]
    for row in rows.values():
        took = row["seconds"]["median"]
        assert 0 < row["of_link"] * took <= took + CREDIT_SECONDS  # more the switch lets nobody carry
