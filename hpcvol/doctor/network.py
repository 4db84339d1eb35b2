"""What there is to say of the network interfaces of this host."""

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from hpcvol.comm.interfaces import Interface, interfaces
from hpcvol.doctor.finding import Finding, note, ok, wrong

_TOPIC = "network"


def check_network() -> Iterator[Finding]:
    """Yield what there is to say of this host's interfaces and of its name."""
    yield from judge(interfaces())
    yield from infiniband(Path("/sys/class/infiniband"))
    yield _own_name()


def judge(found: Iterable[Interface]) -> Iterator[Finding]:
    """Say which interfaces there are, and which of them are traps."""
    real = [one for one in found if not one.is_bridge]
    traps = [one for one in found if one.is_bridge]
    for one in real:
        yield ok(_TOPIC, one.name, str(one))
    for one in traps:
        yield note(
            _TOPIC,
            one.name,
            f"{one}: of containers or virtual machines; Open MPI may try it for another host and hang",
            f"for runs on several hosts: {exclude(traps)}",
        )
    if not real:
        yield note(_TOPIC, "interfaces", "none but the loopback: runs stay on this host")


def infiniband(folder: Path) -> Iterator[Finding]:
    """Say which InfiniBand and Omni-Path ports there are, from `/sys/class/infiniband`."""
    for port in sorted(folder.glob("*/ports/*")):
        try:
            state, rate = ((port / name).read_text().strip() for name in ("state", "rate"))
        except OSError:
            continue
        name, found = port.parts[-3], f"port {port.name}: {state.partition(': ')[2] or state}, {rate}"
        if "ACTIVE" in state:
            yield ok(_TOPIC, name, found)
        else:
            yield note(_TOPIC, name, found, "ask who runs this host whether its cable is in and a subnet manager runs")


def exclude(traps: Iterable[Interface]) -> str:
    """Return what to type so that Open MPI leaves interfaces alone."""
    names = ",".join(["lo", *dict.fromkeys(one.name for one in traps)])
    return f"export OMPI_MCA_btl_tcp_if_exclude={names} PRTE_MCA_prte_if_exclude={names}"


def _own_name() -> Finding:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return wrong(
            _TOPIC,
            "own name",
            f"{name} has no address: mpiexec cannot start ranks",
            f"echo '127.0.1.1 {name}' | sudo tee -a /etc/hosts, or ask who runs this host",
        )
    if address.startswith("127."):
        return note(
            _TOPIC,
            "own name",
            f"{name} is {address} here, which other hosts cannot reach",
            "on several hosts name the interface: `hpcvol doctor --hosts` says which",
        )
    return ok(_TOPIC, "own name", f"{name} is {address}")
