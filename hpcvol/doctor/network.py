"""The network interfaces of this host."""

import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from hpcvol.doctor.finding import Finding, note, ok, wrong

_TOPIC = "network"
# Bridges of containers and virtual machines: every host has the same address there, and it leads nowhere.
_BRIDGE = re.compile(r"(docker|virbr|br-|veth|cni|podman|lxc|lxdbr|flannel|cali|vmnet|vboxnet)")


@dataclass(frozen=True)
class Interface:
    """A network interface with an IPv4 address that is up and not the loopback.

    Args:
        name: such as `eth0`.
        address: of this host.
        network: in CIDR notation.
        mbits: speed in Mbit/s, 0 where the system does not know.
        is_bridge: whether it belongs to containers or virtual machines of this host.
    """

    name: str
    address: str
    network: str
    mbits: int
    is_bridge: bool

    def __str__(self) -> str:
        return f"{self.address} in {self.network}{f', {self.mbits} Mbit/s' if self.mbits else ''}"


def interfaces() -> list[Interface]:
    """Return the interfaces of this host that could lead to another one. Local."""
    states = psutil.net_if_stats()
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        state = states.get(name)
        for one in addresses:
            if one.family != socket.AF_INET or state is None or not state.isup or one.address.startswith("127."):
                continue
            network = str(ipaddress.ip_network(f"{one.address}/{one.netmask or '255.255.255.255'}", strict=False))
            bridge = bool(_BRIDGE.match(name)) or Path(f"/sys/class/net/{name}/bridge").exists()
            # A system that does not know a speed says 0, or 65535.
            found.append(Interface(name, one.address, network, state.speed % 65535, bridge))
    return found


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
