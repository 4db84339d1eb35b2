"""The processes of the other members: how to reach them, and what can be seen of them from here."""

import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hpcvol.comm.interfaces import Interface, interfaces
from hpcvol.comm.machine import machine
from hpcvol.comm.processes import Process
from hpcvol.comm.status_service import Message, ask

# A member that is well answers in milliseconds; one on a busy host or a slow network gets this long.
ANSWER_SECONDS = 1.5
_TOKEN_NBYTES = 16
_MAX_THREADS = 16


@dataclass(frozen=True)
class Peer:
    """What a member tells the others of itself at the start.

    Attributes:
        member: its id.
        host: name of its host.
        process: its process on that host.
        machine: equal for members that see each other's processes and share a loopback.
        networks: its address in each network that it is in, none of containers or virtual machines.
        port: of its status service; 0 where it has none.
        stacks_fd: of its `StackFile`.
    """

    member: int
    host: str
    process: Process
    machine: str
    networks: Mapping[str, str]
    port: int
    stacks_fd: int

    @property
    def name(self) -> str:
        """Such as `member 2 (node07)`."""
        return f"member {self.member} ({self.host})"

    @staticmethod
    def current(member: int, port: int, stacks_fd: int) -> "Peer":
        """Return this process. Local."""
        networks = {one.network: one.address for one in reversed(_real(interfaces()))}
        return Peer(member, socket.gethostname(), Process.current(), machine(), networks, port, stacks_fd)


class Peers:
    """All members of the run.

    Args:
        token: what everybody has to know who asks or tells.
        me: this process.
        others: all members, this one too.
    """

    def __init__(self, token: bytes, me: Peer, others: Iterable[Peer]) -> None:
        self._token = token
        self.me = me
        self._by_member = {peer.member: peer for peer in others}
        self._good_address: dict[int, str] = {}

    def __getitem__(self, member: int) -> Peer:
        return self._by_member[member]

    def members(self) -> list[int]:
        """Return the ids of all members, in order."""
        return sorted(self._by_member)

    def is_near(self, member: int) -> bool:
        """Return whether this process sees the process of `member`."""
        return self[member].machine == self.me.machine

    def machine_of(self, member: int) -> list[int]:
        """Return all members on the machine of `member`, `member` first."""
        machine = self[member].machine
        return [member, *(one for one, peer in self._by_member.items() if peer.machine == machine and one != member)]

    def ask(self, member: int, question: Mapping[str, Any], seconds: float = ANSWER_SECONDS) -> Message | None:
        """Return the answer of `member`, None where there is none in time.

        Args:
            member: who is asked.
            question: values for JSON.
            seconds: how long it may take.

        Raises:
            ConnectionRefusedError: its host says that nobody listens there any more.
        """
        peer = self[member]
        sure, unsure = self._routes(peer) if peer.port else ([], [])
        for routes in (sure, unsure):
            try:
                address, answer = ask(routes, peer.port, self._token, question, seconds)
            except ConnectionRefusedError:
                if routes is sure:  # elsewhere another host may have refused
                    raise
            except OSError:
                continue
            else:
                if answer.get("member") == member:
                    self._good_address[member] = address
                    return answer
        return None

    def ask_all(self, members: Iterable[int], question: Mapping[str, Any]) -> dict[int, Message]:
        """Return the answers of those of `members` that answer, `{"refused": True}` where nobody listens any more.

        All are asked at the same time.
        """
        answers: dict[int, Message] = {}

        def ask_one(member: int) -> None:
            try:
                answer = self.ask(member, question)
            except ConnectionRefusedError:
                answer = {"refused": True}
            if answer is not None:
                answers[member] = answer

        in_threads(ask_one, members)
        return answers

    def _routes(self, peer: Peer) -> tuple[list[str], list[str]]:
        """Return addresses that are those of `peer` for sure, and others that may be."""
        if peer.machine == self.me.machine:
            return ["127.0.0.1"], []
        good = self._good_address.get(peer.member)
        common = [address for network, address in peer.networks.items() if network in self.me.networks]
        others = [address for network, address in peer.networks.items() if network not in self.me.networks]
        return list(dict.fromkeys([*([good] if good else []), *common])), [*others, peer.host]


def new_token() -> bytes:
    """Return a token that nobody can guess."""
    return secrets.token_bytes(_TOKEN_NBYTES)


def in_threads(function: Callable[[int], None], arguments: Iterable[int]) -> None:
    """Call `function` with each of `arguments`, several at a time; return when all are done."""
    left = list(arguments)

    def work() -> None:
        with suppress(IndexError):
            while True:
                function(left.pop())

    threads = [threading.Thread(target=work, name="hpcvol-watch-asks", daemon=True) for _ in left[1:_MAX_THREADS]]
    for thread in threads:
        with suppress(RuntimeError):  # the interpreter is about to end: this thread asks them all
            thread.start()
    work()
    for thread in threads:
        if thread.ident is not None:
            thread.join()


def _real(found: list[Interface]) -> list[Interface]:
    """Leave bridges out: all hosts have the same address there, and asking it would mean asking oneself."""
    return [one for one in found if not one.is_bridge]
