"""Which interface every pair of hosts can use: pure judgement of what the agents tried."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcvol.comm.launcher import MPICH
from hpcvol.doctor.finding import Finding, note, ok, wrong

_TOPIC = "hosts"
_SKEW_SECONDS = 1.0


@dataclass(frozen=True)
class Candidate:
    """An interface, or a network, that all hosts have.

    Args:
        name: of the interface where it is the same on all hosts, else the network in CIDR notation.
        interfaces: of each host (by nonce), the interface that it is there.
        mbits: the lowest speed that a host reports, 0 where one does not know.
        is_bridge: whether it belongs to containers or virtual machines on some host.
    """

    name: str
    interfaces: Mapping[str, Mapping[str, Any]]
    mbits: int
    is_bridge: bool


def candidates(hellos: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Return what all hosts have in common: interfaces of one name, then networks."""
    by_name = [_first_by("name", hello["interfaces"]) for hello in hellos]
    by_network = [_first_by("network", hello["interfaces"]) for hello in hellos]
    nonces = [hello["hello"] for hello in hellos]
    found = []
    used: set[str] = set()
    for name in by_name[0]:
        if all(name in host for host in by_name):
            found.append(_candidate(name, dict(zip(nonces, (host[name] for host in by_name), strict=True))))
            used |= {host[name]["address"] for host in by_name}
    for network in by_network[0]:
        if all(network in host and host[network]["address"] not in used for host in by_network):
            found.append(_candidate(network, dict(zip(nonces, (host[network] for host in by_network), strict=True))))
    return found


def strays(hellos: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of interfaces that some hosts have and others have not, and that are no candidates' either."""
    used = {one["address"] for candidate in candidates(hellos) for one in candidate.interfaces.values()}
    return sorted({one["name"] for hello in hellos for one in hello["interfaces"] if one["address"] not in used})


def plan(found: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return what the agents are to try: every address of every other host, and from which of their own."""
    return [
        {
            "candidate": candidate.name,
            "nonce": nonce,
            "address": one["address"],
            "port": one["port"],
            "from": {other: there["address"] for other, there in candidate.interfaces.items()},
        }
        for candidate in found
        for nonce, one in candidate.interfaces.items()
    ]


def judge_network(
    names: Mapping[str, str],
    found: Sequence[Candidate],
    tries: Mapping[str, Sequence[Mapping[str, Any]]],
    vendor: str | None,
    variables: Mapping[str, str],
) -> Iterator[Finding]:
    """Say of each candidate between which hosts it works, and which one to use.

    Args:
        names: of the hosts, by nonce.
        found: the candidates.
        tries: what each host tried.
        vendor: of the MPI, for what to type.
        variables: the environment: where the right setting is there already nothing is wrong.
    """
    failures = {candidate.name: _failures(names, candidate, tries) for candidate in found}
    good = [candidate for candidate in found if not failures[candidate.name] and not candidate.is_bridge]
    best = max(good, key=lambda one: (one.mbits, -_slowest(one, tries)), default=None)
    for candidate in found:
        bad = failures[candidate.name]
        if bad:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            yield note(_TOPIC, candidate.name, f"does not work: {bad[0]}{more}")
        else:
            speed = f", {candidate.mbits} Mbit/s" if candidate.mbits else ""
            slowest = 1000 * _slowest(candidate, tries)
            yield ok(_TOPIC, candidate.name, f"works between all hosts: answers within {slowest:.1f} ms{speed}")
    if best is None:
        reached = "; ".join(bad[0] for bad in failures.values()) or "they have no interface or network in common"
        yield wrong(
            _TOPIC,
            "network",
            f"no interface reaches all hosts from all hosts: {reached}",
            "leave out the host that is not reached, or let a firewall between them pass TCP on all ports",
        )
    else:
        yield _which(
            best, dead=[one for one in found if failures[one.name] or one.is_bridge], vendor=vendor, variables=variables
        )


def settings(candidate: Candidate, vendor: str | None) -> dict[str, str]:
    """Return the variables that make an MPI use `candidate`."""
    interface = str(next(iter(candidate.interfaces.values()))["name"])
    if vendor == MPICH:  # knows interfaces only; libfabric and UCX each have their own word for it
        return {"HYDRA_IFACE": interface, "FI_TCP_IFACE": interface, "UCX_NET_DEVICES": interface}
    return {"OMPI_MCA_btl_tcp_if_include": candidate.name, "PRTE_MCA_prte_if_include": candidate.name}


def judge_strays(hellos: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Say which interfaces are not on all hosts: an MPI may take their addresses for reachable ones."""
    names = strays(hellos)
    if names:
        excluded = ",".join(["lo", *names])
        yield note(
            _TOPIC,
            ",".join(names),
            "on some hosts only; Open MPI may try to reach it from the others",
            "name the interface to use, or leave these out: "
            f"export OMPI_MCA_btl_tcp_if_exclude={excluded} PRTE_MCA_prte_if_exclude={excluded}",
        )


def judge_clocks(names: Mapping[str, str], tries: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Finding]:
    """Say how far clocks are apart, as the first host sees it."""
    first = next(iter(names))
    ahead: dict[str, float] = {}
    for one in tries.get(first, ()):
        if "ahead_seconds" in one:
            ahead.setdefault(one["to"], one["ahead_seconds"])
    if not ahead:
        return
    worst = max(ahead, key=lambda nonce: abs(ahead[nonce]))
    found = f"{names[worst]} is {ahead[worst]:+.3f} s from {names[first]}, the furthest of {len(names)} hosts"
    if abs(ahead[worst]) > _SKEW_SECONDS:
        remedy = "start a time service (chronyd) on it, or ask who runs it; logs and file times disagree until then"
        yield note(_TOPIC, "clocks", found, remedy)
    else:
        yield ok(_TOPIC, "clocks", found)


def judge_machines(names: Mapping[str, str], machines: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Say whether all hosts compute the same bits, and where they differ in what."""
    classes = {nonce: machine["numerics"] for nonce, machine in machines.items() if "numerics" in machine}
    for nonce, name in names.items():
        if nonce not in classes:
            why = machines.get(nonce, {}).get("error", "it did not answer in time")
            yield wrong(_TOPIC, name, f"torch is not known there: {why}", f"ssh {name} hpcvol doctor")
    if not classes:
        return
    reference, expected = next(iter(classes.items()))
    for nonce, numerics in classes.items():
        different = [key for key in expected if expected[key] != numerics.get(key)]
        if different:
            differences = "; ".join(
                f"{key}: {expected[key]} on {names[reference]}, {numerics.get(key)} on {names[nonce]}"
                for key in different
            )
            yield _other_class(names[nonce], differences, different)
    if all(numerics == expected for numerics in classes.values()):
        described = f"{expected['instruction set']}, torch {expected['torch']}, digest {expected['digest']}"
        yield ok(_TOPIC, "numerics", f"all {len(classes)} hosts compute the same bits: {described}")


def _other_class(name: str, differences: str, different: Sequence[str]) -> Finding:
    if "digest" not in different:
        return note(_TOPIC, name, f"another processor or build, and the same bits in what was tried: {differences}")
    if "torch" in different or "torch build" in different:
        remedy = "install the same torch on all hosts"
    else:
        remedy = (
            "export ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 on all hosts, or ask for hosts of one kind "
            '(sbatch --constraint), or train.sum = "float"'
        )
    return wrong(_TOPIC, name, f"computes other bits, which the exact sum refuses: {differences}", remedy)


def _first_by(key: str, interfaces: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the first interface of each value of `key`."""
    found: dict[str, Mapping[str, Any]] = {}
    for one in interfaces:
        found.setdefault(one[key], one)
    return found


def _candidate(name: str, interfaces: Mapping[str, Mapping[str, Any]]) -> Candidate:
    speeds = [int(one["mbits"]) for one in interfaces.values()]
    return Candidate(name, interfaces, min(speeds), any(one["is_bridge"] for one in interfaces.values()))


def _failures(
    names: Mapping[str, str], candidate: Candidate, tries: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    """Return `h0 -> h1: why` for every pair that does not work."""
    failures = []
    for one in candidate.interfaces:
        results = {tried["to"]: tried for tried in tries.get(one, ()) if tried["candidate"] == candidate.name}
        for other in candidate.interfaces:
            if other != one and "seconds" not in results.get(other, {}):
                why = results.get(other, {}).get("error", "was not tried in time")
                failures.append(f"{names[one]} -> {names[other]}: {why}")
    return failures


def _slowest(candidate: Candidate, tries: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    """Return the longest time to the first answer between two hosts, in seconds."""
    times = (one for results in tries.values() for one in results if one["candidate"] == candidate.name)
    return max((float(one["seconds"]) for one in times if "seconds" in one), default=0.0)


def _which(best: Candidate, *, dead: Sequence[Candidate], vendor: str | None, variables: Mapping[str, str]) -> Finding:
    wanted = settings(best, vendor)
    if not dead:
        return ok(_TOPIC, "network", f"any interface will do; the fastest is {best.name}")
    names = ", ".join(one.name for one in dead)
    if all(name in variables for name in list(wanted)[:2]):
        return ok(_TOPIC, "network", f"use {best.name}, and not {names}; the environment names an interface already")
    return wrong(
        _TOPIC,
        "network",
        f"use {best.name}: all hosts have {names}, which does not lead from one to the other, and MPI may hang on it",
        "export " + " ".join(f"{name}={value}" for name, value in wanted.items()),
    )
