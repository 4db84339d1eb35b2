"""`hpcvol doctor --hosts` on two virtual hosts: finds the interface that works among those that do not."""

import json
import sys
from typing import Any

import pytest
from lab import MakeHosts
from lab_needs import hosts_are_needed, slurm_is_needed
from throwaway_slurm import throwaway_slurm
from virtual_hosts import VirtualHosts, virtual_hosts

HPCVOL = [sys.executable, "-m", "hpcvol.cli"]


def add_interface(hosts: VirtualHosts, name: str, addresses: dict[str, str]) -> None:
    """Give each host an interface that is up, has an address, and leads nowhere."""
    for host, address in addresses.items():
        script = f"ip link add {name} type bridge && ip address add {address} dev {name} && ip link set {name} up"
        made = hosts.run(host, ["sh", "-c", script])
        if made.returncode != 0:
            pytest.skip(f"this kernel makes no interfaces of its own: {made.stderr.strip()}")


def examine(hosts: VirtualHosts, names: str = "h0,h1", **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit status and, by name, what the doctor says of the hosts."""
    argv = [*HPCVOL, "doctor", "--hosts", names, "--rsh", str(hosts.remote_shell), "--json"]
    done = hosts.run("h0", argv, variables=variables, seconds=100)
    said = json.loads(done.stdout)
    return done.returncode, {one["name"]: one for one in said["findings"] if one["topic"] == "hosts"}


@pytest.mark.any_mpi
@pytest.mark.limit_seconds(150)
def test_the_interface_that_works_is_named(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(2)
    (real,) = {line.split(":")[1].strip() for line in _links(hosts) if "lo:" not in line}
    add_interface(hosts, "dead0", {"h0": "172.30.0.1/24", "h1": "172.30.0.2/24"})
    add_interface(hosts, "docker0", {"h0": "172.17.0.1/16", "h1": "172.17.0.1/16"})
    status, found = examine(hosts)
    assert status == 1
    assert found[real]["status"] == "ok"
    assert "h0 -> h1" in found["dead0"]["found"]
    assert "docker0" in found
    assert found["docker0"]["status"] == "note"
    assert "does not work" in found["docker0"]["found"]
    assert found["network"]["status"] == "wrong"
    assert f"use {real}: " in found["network"]["found"]
    assert real in found["network"]["remedy"]
    assert found["numerics"]["status"] == "ok"
    assert found["clocks"]["status"] == "ok"  # one machine has one clock
    # What it said to type makes it well.
    variables = dict(pair.split("=") for pair in found["network"]["remedy"].removeprefix("export ").split())
    status, found = examine(hosts, **variables)
    assert found["network"]["status"] == "ok"


@pytest.mark.limit_seconds(120)
def test_hosts_that_do_not_answer_are_named(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(2)
    status, found = examine(hosts, "h0,h1,h7")
    assert status == 1
    assert "2 of 3 hosts answer; not h7" in found["start"]["found"]
    assert found["numerics"]["status"] == "ok"  # the others are examined all the same


def _links(hosts: VirtualHosts) -> list[str]:
    return hosts.run("h0", ["ip", "-o", "link", "show", "up"]).stdout.splitlines()


@pytest.mark.limit_seconds(180)
def test_in_a_job_the_hosts_are_the_jobs() -> None:
    slurm_is_needed()
    hosts_are_needed()
    with virtual_hosts(2) as hosts, throwaway_slurm(2, hosts=hosts) as slurm:
        argv = ["salloc", "--quiet", "-N", "2", "--exclusive", *HPCVOL, "doctor", "--hosts", "--json"]
        done = hosts.run("h0", argv, variables=slurm.variables, seconds=120)
    found = {(one["topic"], one["name"]): one for one in json.loads(done.stdout)["findings"]}
    assert found["hosts", "network"]["status"] == "ok"
    assert "all 2 hosts compute the same bits" in found["hosts", "numerics"]["found"]
    assert "on h[0-1]" in found["Slurm", "job"]["found"]
    assert "set checkpoint.every_steps" in found["Slurm", "partition graceless"]["remedy"]
    assert found["Slurm", "partition urgent"]["status"] == "ok"
