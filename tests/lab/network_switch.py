"""A network switch as a program: gives every host an `eth0` and carries its frames, at a rate and with a delay.

`python network_switch.py CONTROL RATE DELAY PID:IP...`: PID is a process in the network namespace of a host. A host's
way into the switch carries one frame after another at RATE bit/s (0: as fast as they come); DELAY seconds later a frame
is with its receiver. Frames that find more than `QUEUE_NBYTES` waiting are dropped, as in a switch. Needs root and
/dev/net/tun, and no support of the kernel for shaping.

The Unix datagram socket CONTROL takes `shape RATE DELAY [IP]`, `cut IP`, `heal IP` and `traffic`, and answers in JSON.
It prints `ready`. Frames come as the sender's kernel made them, up to 64 KiB, and the receiver's takes them so: that is
what makes gigabits a second possible here.
"""

import ctypes
import fcntl
import heapq
import itertools
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

QUEUE_NBYTES = 1_000_000
FRAME_NBYTES = 70_000
# A link may make up for this much idle time: it was this program that was late, not the host that had nothing to send.
CREDIT_SECONDS = 0.002
# How many frames of one host are taken before the others have their turn.
BURST = 16

CLONE_NEWNET = 0x40000000
PR_SET_TIMERSLACK = 29
# linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8
HEADER_NBYTES = 10  # struct virtio_net_hdr, in front of every frame

libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Link:
    """The way between a host and the switch."""

    ip: str
    descriptor: int
    rate: float
    delay: float
    is_cut: bool = False
    free_at: float = 0.0
    sent_nbytes: int = 0
    received_nbytes: int = 0
    dropped: int = 0

    def leaves_at(self, nbytes: int, now: float) -> float | None:
        """Return when a frame that comes now has left the host; None where it is dropped."""
        begins = max(now - CREDIT_SECONDS, self.free_at)
        if self.is_cut or (begins - now) * self.rate / 8 > QUEUE_NBYTES:
            self.dropped += 1
            return None
        if self.rate:
            self.free_at = begins = begins + nbytes * 8 / self.rate
        return max(begins, now)  # the credit is of bytes: no frame travels faster for it

    def deliver(self, frame: bytes) -> None:
        """Give `frame` to the host."""
        if self.is_cut:
            return
        try:
            os.write(self.descriptor, frame)
            self.received_nbytes += len(frame) - HEADER_NBYTES
        except OSError:  # the host takes no more just now, or is gone
            self.dropped += 1


def mac_of(ip: str) -> bytes:
    """Return the hardware address of the host at `ip`."""
    return bytes([2, 0x4C, *(int(part) for part in ip.split("."))])


def enter_network(path: str) -> None:
    """Make the network namespace at `path` this process's."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")
    finally:
        os.close(descriptor)


def plug_in(pid: int, ip: str) -> int:
    """Make `eth0` in the network of `pid`; return the descriptor that its frames come from and go to."""
    enter_network(f"/proc/{pid}/ns/net")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, struct.pack("i", HEADER_NBYTES))
    fcntl.ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
    for words in (
        "link set lo up",
        f"link set eth0 address {mac_of(ip).hex(':')}",
        f"addr add {ip}/24 dev eth0",
        "link set eth0 txqueuelen 1000 up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    return descriptor


class Switch:
    """Carries frames between `links` and obeys what comes to `control`."""

    def __init__(self, links: list[Link], control: socket.socket) -> None:
        self._links = {link.ip: link for link in links}
        self._by_mac = {mac_of(link.ip): link for link in links}
        self._by_descriptor = {link.descriptor: link for link in links}
        self._control = control
        self._due: list[tuple[float, int, Link, bytes]] = []
        self._count = itertools.count()

    def run(self) -> None:
        """Go on for ever."""
        watched = [*self._by_descriptor, self._control.fileno()]
        while True:
            timeout = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            readable, _, _ = select.select(watched, [], [], timeout)
            self._deliver_what_is_due()
            for descriptor in readable:
                if descriptor in self._by_descriptor:
                    self._take(self._by_descriptor[descriptor])
                else:
                    self._obey()

    def _deliver_what_is_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, receiver, frame = heapq.heappop(self._due)
            receiver.deliver(frame)

    def _take(self, sender: Link) -> None:
        for _ in range(BURST):
            try:
                frame = os.read(sender.descriptor, FRAME_NBYTES)
            except BlockingIOError:
                return
            now, nbytes = time.monotonic(), len(frame) - HEADER_NBYTES
            left = sender.leaves_at(nbytes, now)
            if left is None:
                continue
            sender.sent_nbytes += nbytes
            known = self._by_mac.get(frame[HEADER_NBYTES : HEADER_NBYTES + 6])
            for receiver in [known] if known else [link for link in self._links.values() if link is not sender]:
                if left + sender.delay <= now:
                    receiver.deliver(frame)
                else:
                    heapq.heappush(self._due, (left + sender.delay, next(self._count), receiver, frame))

    def _obey(self) -> None:
        words, asker = self._control.recvfrom(1000)
        match words.decode().split():
            case ["shape", rate, delay, *ips]:
                for ip in ips or self._links:
                    self._links[ip].rate, self._links[ip].delay = float(rate), float(delay)
            case ["cut" | "heal" as what, ip]:
                self._links[ip].is_cut = what == "cut"
        traffic = {link.ip: (link.sent_nbytes, link.received_nbytes, link.dropped) for link in self._links.values()}
        self._control.sendto(json.dumps(traffic).encode(), asker)


def main() -> None:
    """Plug all hosts in and carry their frames until killed."""
    path, rate, delay, *hosts = sys.argv[1:]
    control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    control.bind(path)
    links = []
    for host in hosts:
        pid, ip = host.split(":")
        links.append(Link(ip, plug_in(int(pid), ip), float(rate), float(delay)))
    libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # or every delay is 50 microseconds too long
    with suppress(PermissionError):  # a network does not slow down when hosts compute
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    enter_network(f"/proc/{os.getppid()}/ns/net")  # out of the last host's: it may lose its power
    print("ready", flush=True)
    Switch(links, control).run()


if __name__ == "__main__":
    main()
