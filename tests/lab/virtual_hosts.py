"""Hosts on one machine, for what crosses a network: each has its network, name, /etc/hosts, /dev/shm and mounts.

They share the file system (but for `private` folders), processors and process ids. Only root can make them; in a test
call `hosts_are_needed()` of lab_needs.py first, which skips it elsewhere, or use the fixture of plugin `lab`:

    def test_over_a_network(make_hosts: MakeHosts, tmp_path: Path) -> None:
        hosts = make_hosts(2, rate=100e6, delay=0.01, private=[tmp_path / "scratch"])      # 100 Mbit/s, 10 ms one way
        done = hosts.run("h0", ["hostname"])
        launch = hosts.launch_command({"h0": 2, "h1": 1}, [sys.executable, "program.py"])  # mpiexec, 3 ranks
        done = hosts.run("h0", launch.argv, variables=launch.environment, seconds=60)
        hosts.cut("h1")                 # its network is gone, its processes live; heal("h1") brings it back
        hosts.power_off("h1")           # its processes are killed, its network lives
        print(hosts.traffic())          # bytes that each has sent and received, frames dropped

By hand: `python tests/lab/virtual_hosts.py 4 1e9 0.0001` starts four and says how to get into them.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hpcvol import environment
from hpcvol.comm import Launch, launch_command
from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of

HERE = Path(__file__).parent
LIMIT_SECONDS = 50.0
_NAMESPACES = ("--net", "--uts", "--mount", "--ipc")

# Variables: NAME, ETC_HOSTS and PRIVATE (pairs of folders, one folder a line).
_BOOT = """
hostname "$NAME"
mount --bind "$ETC_HOSTS" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
while read -r own && read -r seen; do mount --bind "$own" "$seen"; done <<<"$PRIVATE"
echo ready
exec sleep infinity
"""


@dataclass(frozen=True)
class Traffic:
    """What has passed between a host and the switch: bytes, and frames that were dropped."""

    sent_nbytes: int
    received_nbytes: int
    dropped: int


class VirtualHosts:
    """Hosts h0, h1, ... at 10.77.0.1, 10.77.0.2, ...; made by `virtual_hosts`.

    Attributes:
        names: of the hosts.
        folder: holds their state, and `HOST/...`, what each has in its private folders.
    """

    def __init__(self, names: list[str], folder: Path) -> None:
        self.names = names
        self.folder = folder

    def address(self, host: str) -> str:
        """Return the address of `host`."""
        return f"10.77.0.{self.names.index(host) + 1}"

    def enter(self, host: str, argv: Sequence[str], folder: Path | None = None) -> list[str]:
        """Return the command that runs `argv` on `host`, in `folder` (this process's); its process becomes `argv`'s."""
        holder = (self.folder / f"{host}.pid").read_text()
        return ["nsenter", "--target", holder, *_NAMESPACES, f"--wd={folder or Path.cwd()}", "--", *argv]

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        variables: Mapping[str, str] | None = None,
        seconds: float = LIMIT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` on `host` to its end with `variables` on top of the environment.

        Raises:
            subprocess.TimeoutExpired: after `seconds`; all processes of all hosts have been killed.
        """
        with self.running(host, argv, variables=variables) as process:
            try:
                stdout, stderr = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired as error:
                self.kill_all()
                stdout, stderr = process.communicate()  # what it wrote says where it hangs
                error.add_note(f"--- stdout\n{stdout}\n--- stderr\n{stderr}")
                raise
        return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)

    @contextmanager
    def running(
        self, host: str, argv: Sequence[str], *, variables: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        """Start `argv` on `host` with its output in pipes; on leaving, kill it if it still runs."""
        with subprocess.Popen(
            self.enter(host, argv),
            env={**environment.snapshot(), **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def launch_command(self, ranks: Mapping[str, int], program: Sequence[str]) -> Launch:
        """Return the mpiexec, to be run on any host, that starts `ranks[host]` ranks of `program` on each host."""
        launch = launch_command(sum(ranks.values()), program)
        places = ",".join(f"{host}:{number}" for host, number in ranks.items())
        if vendor_of(loaded_library()) == OPEN_MPI:
            flags = ["--prtemca", "plm_ssh_agent", str(self.remote_shell), "--host", places]
        else:
            flags = ["-launcher", "ssh", "-launcher-exec", str(self.remote_shell), "-hosts", places]
        return Launch((launch.argv[0], *flags, *launch.argv[1:]), launch.note, launch.environment)

    @property
    def remote_shell(self) -> Path:
        """A program that is to a launcher what ssh is elsewhere: PROGRAM HOST WORDS..."""
        return self.folder / "remote_shell"

    def shape(self, rate: float, delay: float, host: str | None = None) -> None:
        """From now on let `host`, or all, send at `rate` bit/s (0: no limit), each frame `delay` seconds on its way."""
        self._tell("shape", str(rate), str(delay), *([self.address(host)] if host else []))

    def cut(self, host: str) -> None:
        """Take the network from `host`: frames from it and to it are lost."""
        self._tell("cut", self.address(host))

    def heal(self, host: str) -> None:
        """Give it back."""
        self._tell("heal", self.address(host))

    def traffic(self) -> dict[str, Traffic]:
        """Return what each host has sent and received since it was made."""
        told = self._tell("traffic")
        return {host: Traffic(*told[self.address(host)]) for host in self.names}

    def pids(self, host: str) -> list[int]:
        """Return the processes that run on `host`."""
        holder = int((self.folder / f"{host}.pid").read_text())
        network = os.readlink(f"/proc/{holder}/ns/net")
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                # A process that has ended and that its parent has not looked at yet has no namespaces.
                if int(entry.name) != holder and os.readlink(entry / "ns" / "net") == network:
                    found.append(int(entry.name))
        return found

    def power_off(self, host: str) -> list[int]:
        """Kill all processes of `host`, and what they start meanwhile; return which there were."""
        killed: set[int] = set()
        while found := self.pids(host):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= set(found)
        return sorted(killed)

    def kill_all(self) -> None:
        """Kill whatever runs on any host."""
        for host in self.names:
            self.power_off(host)

    def _tell(self, *words: str) -> dict[str, list[int]]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
            asking.settimeout(10)
            asking.bind("")  # a name of its own, for the answer
            asking.sendto(" ".join(words).encode(), str(self.folder / "control"))
            told: dict[str, list[int]] = json.loads(asking.recv(65536))
        return told


def _leave_in_order_when_terminated(stack: ExitStack) -> None:
    """Have SIGTERM take the hosts away too, and not leave their processes to nobody."""
    if threading.current_thread() is not threading.main_thread():
        return

    def leave(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    stack.callback(signal.signal, signal.SIGTERM, before)


@contextmanager
def virtual_hosts(
    number: int, *, rate: float = 0.0, delay: float = 0.0, private: Sequence[Path] = ()
) -> Iterator[VirtualHosts]:
    """Make `number` hosts joined by a switch; on leaving, kill what runs on them and take them away.

    Args:
        number: of hosts.
        rate: bit/s at which each can send, 0 for no limit.
        delay: seconds from one host to another.
        private: folders that exist, of which each host sees its own, empty at first, and not the others'.

    Raises:
        RuntimeError: they cannot be made; the message says what the system said.
    """
    names = [f"h{index}" for index in range(number)]
    with ExitStack() as stack:
        _leave_in_order_when_terminated(stack)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts-")))
        hosts = VirtualHosts(names, folder)
        addresses = "".join(f"{hosts.address(name)} {name}\n" for name in names)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{addresses}")
        hosts.remote_shell.write_text(f'#!/bin/sh\nexec {shlex.quote(f"{HERE}/remote_shell")} {folder} "$@"\n')
        hosts.remote_shell.chmod(0o755)
        for name in names:
            _boot(stack, hosts, name, private)
        stack.callback(hosts.kill_all)
        ends = [f"{(folder / f'{name}.pid').read_text()}:{hosts.address(name)}" for name in names]
        switch = [sys.executable, str(HERE / "network_switch.py"), str(folder / "control"), str(rate), str(delay)]
        _start(stack, [*switch, *ends], {})
        yield hosts


def _boot(stack: ExitStack, hosts: VirtualHosts, name: str, private: Sequence[Path]) -> None:
    pairs = []
    for index, seen in enumerate(private):
        own = hosts.folder / name / f"{index}-{seen.name}"
        own.mkdir(parents=True)
        pairs += [str(own), str(seen.resolve())]
    variables = {"NAME": name, "ETC_HOSTS": str(hosts.folder / "hosts"), "PRIVATE": "\n".join(pairs)}
    boot = ["unshare", *_NAMESPACES, "--propagation=private", "bash", "-euc", _BOOT]
    holder = _start(stack, boot, variables)
    (hosts.folder / f"{name}.pid").write_text(str(holder.pid))


def _start(stack: ExitStack, argv: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a program that says `ready` when it is, and dies with this process and with `stack`."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", *argv],
        env={**environment.snapshot(), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    said = process.stdout.readline()
    if said != "ready\n":
        process.kill()
        raise RuntimeError(f"{shlex.join(argv)}: {said}{process.stdout.read()}")
    return process


def main() -> None:
    """Make hosts and keep them until Ctrl-C."""
    number, *shape = sys.argv[1:] or ["2"]
    rate, delay = (*map(float, shape), 0.0, 0.0)[:2]
    with virtual_hosts(int(number), rate=rate, delay=delay) as hosts, suppress(KeyboardInterrupt):
        for name in hosts.names:
            print(shlex.join(hosts.enter(name, ["bash"])))
        print(f"for mpiexec: {hosts.remote_shell}\nCtrl-C takes them away", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
