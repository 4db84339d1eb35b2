"""The network interfaces of this host."""

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

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
