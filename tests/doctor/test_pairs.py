"""Which interface to use: judged from what the hosts' agents tried, without any host."""

from collections.abc import Mapping
from typing import Any

import pytest

from hpcvol.doctor.finding import Finding, Status
from hpcvol.doctor.pairs import (
    Candidate,
    candidates,
    judge_clocks,
    judge_machines,
    judge_network,
    judge_strays,
    plan,
)

NAMES = {"n0": "a", "n1": "b", "n2": "c"}


def interface(name: str, address: str, network: str, mbits: int = 1000, *, is_bridge: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "address": address,
        "network": network,
        "mbits": mbits,
        "is_bridge": is_bridge,
        "port": 1000 + int(address.rpartition(".")[2]),
    }


def hello(index: int, *interfaces: dict[str, Any]) -> dict[str, Any]:
    return {"hello": f"n{index}", "host": NAMES[f"n{index}"], "interfaces": list(interfaces)}


def three_hosts() -> list[dict[str, Any]]:
    """Hosts with a slow network `eth0`, a fast one under other names, and docker's bridge."""
    fast = ("ib0", "ib0", "ibs1")
    return [
        hello(
            k,
            interface("eth0", f"10.0.0.{k + 1}", "10.0.0.0/24"),
            interface(fast[k], f"10.9.0.{k + 1}", "10.9.0.0/16", 100000),
            interface("docker0", "172.17.0.1", "172.17.0.0/16", is_bridge=True),
        )
        for k in range(3)
    ]


def tries(found: list[Candidate], fails: Mapping[tuple[str, str, str], str] = {}) -> dict[str, list[dict[str, Any]]]:
    """Everything works but for (candidate, from, to)."""
    results: dict[str, list[dict[str, Any]]] = {nonce: [] for nonce in NAMES}
    for candidate in found:
        for one in candidate.interfaces:
            for other in candidate.interfaces:
                if one != other:
                    error = fails.get((candidate.name, one, other))
                    how = {"error": error} if error else {"seconds": 0.001, "ahead_seconds": 0.0}
                    results[one].append({"candidate": candidate.name, "to": other, **how})
    return results


def judged(
    found: list[Candidate], tried: Mapping[str, Any], vendor: str = "Open MPI", **variables: str
) -> dict[str, Finding]:
    return {one.name: one for one in judge_network(NAMES, found, tried, vendor, variables)}


def test_candidates_go_by_name_then_by_network() -> None:
    found = candidates(three_hosts())
    assert [one.name for one in found] == ["eth0", "docker0", "10.9.0.0/16"]
    assert found[2].interfaces["n2"]["name"] == "ibs1"
    assert found[2].mbits == 100000
    assert [one.is_bridge for one in found] == [False, True, False]


def test_the_plan_names_every_address_and_where_from() -> None:
    one = next(
        one for one in plan(candidates(three_hosts())) if one["candidate"] == "10.9.0.0/16" and one["nonce"] == "n2"
    )
    assert one["address"] == "10.9.0.3"
    assert one["from"]["n0"] == "10.9.0.1"


def test_the_fastest_that_works_is_named_with_the_setting() -> None:
    found = candidates(three_hosts())
    said = judged(found, tries(found))
    network = said["network"]
    assert network.status is Status.WRONG
    assert network.found.startswith("use 10.9.0.0/16: all hosts have docker0")
    assert network.remedy == "export OMPI_MCA_btl_tcp_if_include=10.9.0.0/16 PRTE_MCA_prte_if_include=10.9.0.0/16"
    mpich = judged(found, tries(found), "MPICH")["network"]
    assert mpich.remedy is not None
    assert "HYDRA_IFACE=ib0 FI_TCP_IFACE=ib0" in mpich.remedy


def test_one_pair_that_fails_spoils_an_interface() -> None:
    found = candidates(three_hosts())
    said = judged(found, tries(found, {("10.9.0.0/16", "n1", "n2"): "no route to host"}))
    assert said["10.9.0.0/16"].status is Status.NOTE
    assert "b -> c: no route to host" in said["10.9.0.0/16"].found
    assert said["network"].found.startswith("use eth0")


def test_a_setting_that_is_there_is_enough() -> None:
    found = candidates(three_hosts())
    there = {"OMPI_MCA_btl_tcp_if_include": "eth0", "PRTE_MCA_prte_if_include": "eth0"}
    assert judged(found, tries(found), **there)["network"].status is Status.OK


def test_nothing_that_works_is_wrong() -> None:
    found = [one for one in candidates(three_hosts()) if one.name == "eth0"]
    said = judged(found, tries(found, {("eth0", "n0", "n1"): "refused"}))
    assert said["network"].status is Status.WRONG
    assert "a -> b: refused" in said["network"].found
    assert judged([], {})["network"].status is Status.WRONG


def test_what_was_not_tried_in_time_does_not_count_as_working() -> None:
    found = [one for one in candidates(three_hosts()) if one.name == "eth0"]
    tried = tries(found)
    del tried["n2"]
    assert "c -> a: was not tried in time" in judged(found, tried)["eth0"].found


def test_without_dead_interfaces_there_is_nothing_to_type() -> None:
    found = [one for one in candidates(three_hosts()) if not one.is_bridge]
    network = judged(found, tries(found))["network"]
    assert (network.status, network.remedy) == (Status.OK, None)


def test_interfaces_of_some_hosts_only() -> None:
    hosts = three_hosts()
    del hosts[1]["interfaces"][2]
    (stray,) = judge_strays(hosts)
    assert stray.name == "docker0"
    assert stray.remedy is not None
    assert "if_exclude=lo,docker0" in stray.remedy
    assert list(judge_strays(three_hosts())) == []


@pytest.mark.parametrize(("ahead", "status"), [(0.01, Status.OK), (-3.5, Status.NOTE)])
def test_clocks(ahead: float, status: Status) -> None:
    tried = {"n0": [{"to": "n1", "ahead_seconds": 0.001}, {"to": "n2", "ahead_seconds": ahead}]}
    (said,) = judge_clocks(NAMES, tried)
    assert said.status is status
    assert f"c is {ahead:+.3f} s from a" in said.found


def machine(**changes: str) -> dict[str, Any]:
    numerics = {"torch": "2", "instruction set": "AVX512", "torch build": "x", "digest": "d"}
    return {"numerics": numerics | changes}


def test_hosts_that_compute_the_same_bits() -> None:
    (said,) = judge_machines(NAMES, dict.fromkeys(NAMES, machine()))
    assert said.status is Status.OK


def test_a_host_of_another_class_is_named_with_what_differs() -> None:
    machines = {"n0": machine(), "n1": machine(), "n2": machine(**{"instruction set": "AVX2", "digest": "e"})}
    (said,) = judge_machines(NAMES, machines)
    assert (said.status, said.name) == (Status.WRONG, "c")
    assert "instruction set: AVX512 on a, AVX2 on c" in said.found
    assert said.remedy is not None
    assert "ATEN_CPU_CAPABILITY=avx2" in said.remedy


def test_another_processor_with_the_same_bits_is_a_note() -> None:
    machines = {"n0": machine(), "n1": machine(processor="other"), "n2": machine(**{"torch build": "y"})}
    assert [one.status for one in judge_machines(NAMES, machines)] == [Status.NOTE]


def test_a_host_without_torch_is_wrong() -> None:
    machines = {"n0": machine(), "n1": machine(), "n2": {"error": "torch does not load"}}
    said = {one.name: one for one in judge_machines(NAMES, machines)}
    assert said["c"].status is Status.WRONG
