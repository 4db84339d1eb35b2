"""The virtual hosts: apart from each other, joined by a network as it was asked for, and gone afterwards."""

import signal
import sys
from pathlib import Path

import psutil
import pytest
from lab import MakeHosts
from lab_needs import hosts_are_needed
from virtual_hosts import VirtualHosts, virtual_hosts

# h0 takes 2 MB, of h1, and says how long that took.
TAKES = """
import socket, time
with socket.create_server(("10.77.0.1", 7777)) as server:
    print("listening", flush=True)
    with server.accept()[0] as connection:
        began, left = time.monotonic(), 2_000_000
        while left: left -= len(connection.recv(left))
        print(time.monotonic() - began, flush=True)
"""
SENDS = """
import socket
with socket.create_connection(("h0", 7777), timeout=10) as connection: connection.sendall(bytes(2_000_000))
"""
# How long h1 takes to refuse a connection, or that it does not answer within LIMIT.
ASKS = """
import errno, socket, time
with socket.socket() as s:
    s.settimeout(LIMIT)
    began = time.monotonic()
    print(errno.errorcode[s.connect_ex(("h1", 9))], time.monotonic() - began)
"""


def ask(hosts: VirtualHosts, limit: float) -> tuple[str, float]:
    answer, seconds = hosts.run("h0", [sys.executable, "-c", ASKS.replace("LIMIT", str(limit))]).stdout.split()
    return answer, float(seconds)


def test_hosts_are_apart(make_hosts: MakeHosts, tmp_path: Path) -> None:
    hosts = make_hosts(2, private=[tmp_path])
    script = f"hostname; hostname >/dev/shm/mine; hostname >{tmp_path}/mine; cat /dev/shm/* {tmp_path}/*"
    for name in hosts.names:
        assert hosts.run(name, ["sh", "-c", script]).stdout == f"{name}\n" * 3
    assert list(tmp_path.iterdir()) == []
    assert [path.read_text() for path in sorted(hosts.folder.glob("h*/*/mine"))] == ["h0\n", "h1\n"]
    assert not Path("/dev/shm/mine").exists()


def test_the_network_is_as_slow_as_asked_for_and_can_be_cut(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(2, rate=20e6, delay=0.05)
    # Lower bounds: on a busy machine it can only take longer.
    answer, seconds = ask(hosts, 20)
    assert answer == "ECONNREFUSED"
    assert seconds >= 0.1  # there and back
    with hosts.running("h0", [sys.executable, "-c", TAKES]) as takes:
        assert takes.stdout is not None
        assert takes.stdout.readline() == "listening\n"
        assert hosts.run("h1", [sys.executable, "-c", SENDS]).returncode == 0
        assert float(takes.stdout.readline()) >= 0.9 * 2e6 * 8 / 20e6
    traffic = hosts.traffic()
    assert traffic["h1"].sent_nbytes > 2_000_000
    assert traffic["h0"].received_nbytes > 2_000_000
    hosts.cut("h1")
    assert ask(hosts, 0.5)[0] == "EAGAIN"
    hosts.heal("h1")
    assert ask(hosts, 20)[0] == "ECONNREFUSED"


def test_a_host_without_power_has_no_processes(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(2)
    with hosts.running("h1", ["sh", "-c", "sleep 1000 & echo started; wait"]) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "started\n"
        assert len(hosts.power_off("h1")) == 2
        assert victim.wait(10) == -signal.SIGKILL
    assert hosts.run("h1", ["hostname"]).stdout == "h1\n"


def test_nothing_is_left() -> None:
    hosts_are_needed()
    with virtual_hosts(2) as hosts:
        pids = [int((hosts.folder / f"{name}.pid").read_text()) for name in hosts.names]
        with hosts.running("h0", ["sh", "-c", "setsid sleep 1000 & echo started; exec sleep 1000"]) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "started\n"
            pids += hosts.pids("h0")
    assert len(pids) == 4
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    assert not hosts.folder.exists()


@pytest.mark.limit_seconds(120)
def test_ranks_find_each_other_over_the_network(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(2)
    script = (
        "import socket, sys; from hpcvol.comm import start; world = start()\n"
        "names = world.gather_objects(socket.gethostname())\n"
        "sys.stdout.write(f'{world.rank} {names}\\n')"
    )
    launch = hosts.launch_command({"h0": 2, "h1": 1}, [sys.executable, "-c", script])
    done = hosts.run("h0", launch.argv, variables=launch.environment)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"{rank} ['h0', 'h0', 'h1']" for rank in range(3)]
    assert hosts.traffic()["h1"].sent_nbytes > 0
