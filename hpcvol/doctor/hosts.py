"""Several hosts at once: starts an agent on each, lets them try each other, and judges what they say."""

import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

from hpcvol import environment
from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import vendor_of
from hpcvol.doctor.asking import ask, end, json_lines
from hpcvol.doctor.finding import Finding, wrong
from hpcvol.doctor.pairs import candidates, judge_clocks, judge_machines, judge_network, judge_strays, plan
from hpcvol.errors import ConfigError, HpcvolError

_TOPIC = "hosts"
_AGENT = [sys.executable, "-m", "hpcvol.doctor.host_agent"]
_START_SECONDS = 30.0
_TRY_SECONDS = 20.0
_MACHINE_SECONDS = 60.0


def examine_hosts(names: Sequence[str] | None, remote_shell: Sequence[str]) -> list[Finding]:
    """Examine hosts and the network between them: one agent a host, TCP between each pair, no MPI.

    Args:
        names: the hosts; None takes those of the Slurm job that this process is in, and srun to reach them.
        remote_shell: what starts a program on a host of `names`: `REMOTE_SHELL HOST WORDS...`, such as `["ssh"]`.

    Raises:
        ConfigError: no names, and no job.
    """
    if names is None:
        hosts = _hosts_of_job()
        number = str(len(hosts))
        commands = [["srun", "--overlap", "--nodes", number, "--ntasks", number, "--ntasks-per-node", "1", *_AGENT]]
    else:
        hosts = list(names)
        words = shlex.join(["cd", str(Path.cwd())]) + " && " + shlex.join(_AGENT)
        commands = [[*remote_shell, host, words] for host in hosts]
    if len(set(hosts)) < 2:
        raise ConfigError(f"--hosts looks at pairs of hosts, and there is one: {', '.join(hosts)}")
    with _Agents(commands) as agents:
        return list(_examine(agents, hosts))


def _examine(agents: "_Agents", hosts: Sequence[str]) -> Iterator[Finding]:
    hellos = agents.collect("hello", len(hosts), _START_SECONDS)
    if len(hellos) < len(hosts):
        yield _missing(hosts, [str(hello["host"]) for hello in hellos], agents.complaints())
    if len(hellos) < 2:
        return
    hellos.sort(key=lambda hello: str(hello["host"]))
    found = candidates(hellos)
    names = {hello["hello"]: str(hello["host"]) for hello in hellos}
    agents.tell(plan(found))
    tries = {one["nonce"]: one["tries"] for one in agents.collect("tries", len(hellos), _TRY_SECONDS)}
    yield from judge_network(names, found, tries, _vendor(), environment.snapshot())
    yield from judge_strays(hellos)
    yield from judge_clocks(names, tries)
    machines = {one["nonce"]: one["machine"] for one in agents.collect("machine", len(hellos), _MACHINE_SECONDS)}
    yield from judge_machines(names, machines)


class _Agents:
    """The agents' processes, their lines, and their end. A context manager."""

    def __init__(self, commands: Iterable[Sequence[str]]) -> None:
        self._commands = commands
        self._processes: list[subprocess.Popen[str]] = []
        self._lines: Queue[tuple[subprocess.Popen[str], str]] = Queue()
        self._heard: list[tuple[subprocess.Popen[str], dict[str, Any]]] = []
        self._complaints: list[str] = []
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> "_Agents":
        for command in self._commands:
            try:
                process = subprocess.Popen(
                    command,
                    env=environment.snapshot(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
            except OSError as error:
                self._complaints.append(f"{command[0]}: {error.strerror}")
                continue
            self._processes.append(process)
            self._start_reader(process.stdout, partial(self._hear, process))
            self._start_reader(process.stderr, self._complaints.append)
        return self

    def __exit__(self, *_: object) -> None:
        """Let the agents end: their input does. Those that do not are ended, with the launcher."""
        for process in self._processes:
            with suppress(OSError, ValueError):
                assert process.stdin is not None
                process.stdin.close()
        until = time.monotonic() + 3
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1)
            end(process)
            process.wait()
        for reader in self._readers:
            reader.join(1)  # longer only where something that was started holds the pipe

    def tell(self, line: Any) -> None:
        """Send one line to every agent."""
        for process in self._processes:
            with suppress(OSError):
                assert process.stdin is not None
                process.stdin.write(json.dumps(line) + "\n")
                process.stdin.flush()

    def collect(self, key: str, number: int, seconds: float) -> list[dict[str, Any]]:
        """Return the lines that have `key`: `number` of them, or fewer after `seconds` or when none is left to ask."""
        until = time.monotonic() + seconds
        while len(self._said(key)) < number and (left := until - time.monotonic()) > 0:
            try:
                process, text = self._lines.get(timeout=min(left, 0.2))
            except Empty:
                if not any(self._may_say(key, process) for process in self._processes):
                    break
                continue
            self._heard += [(process, line) for line in json_lines(text)]
        return self._said(key)

    def _said(self, key: str) -> list[dict[str, Any]]:
        return [line for _, line in self._heard if key in line]

    def _may_say(self, key: str, process: "subprocess.Popen[str]") -> bool:
        """Whether a line with `key` may still come from `process`: one of several is one host's, a single one srun."""
        has_said = any(process is one and key in line for one, line in self._heard)
        return process.poll() is None and (len(self._processes) == 1 or not has_said)

    def complaints(self) -> str:
        """Return what the agents and their launcher wrote to standard error, shortened."""
        return " ".join(line.strip() for line in self._complaints if line.strip())[-300:]

    def _hear(self, process: "subprocess.Popen[str]", line: str) -> None:
        self._lines.put((process, line))

    def _start_reader(self, stream: "IO[str] | None", take: Callable[[str], None]) -> None:
        assert stream is not None
        reader = threading.Thread(target=_read, args=(stream, take), daemon=True)
        reader.start()
        self._readers.append(reader)


def _read(stream: IO[str], take: Callable[[str], None]) -> None:
    with suppress(OSError, ValueError), stream:
        for line in stream:
            take(line)


def _hosts_of_job() -> list[str]:
    nodes = environment.variable("SLURM_JOB_NODELIST")
    if nodes is None:
        raise ConfigError(
            "--hosts takes the hosts of a Slurm job, and this is none: run it in one (`salloc -N 2 hpcvol doctor "
            "--hosts`), or name them (`hpcvol doctor --hosts a,b`)"
        )
    answer = ask(["scontrol", "show", "hostnames", nodes], 10.0)
    if not answer.good:
        raise ConfigError(f"scontrol cannot tell the hosts of the job ({answer.complaint}): name them, --hosts a,b")
    return answer.stdout.split()


def _missing(hosts: Sequence[str], there: Sequence[str], complaints: str) -> Finding:
    answered = {name.partition(".")[0] for name in there}
    silent = [host for host in hosts if host.partition(".")[0] not in answered] or ["some"]
    said = f": {complaints}" if complaints else ""
    return wrong(
        _TOPIC,
        "start",
        f"{len(there)} of {len(hosts)} hosts answer; not {', '.join(silent)}{said}",
        f"ssh {silent[0]} {shlex.join([*_AGENT[:1], '-c', 'import hpcvol'])}  (a shared installation is needed, and a "
        "login without a password)",
    )


def _vendor() -> str | None:
    try:
        return vendor_of(loaded_library())
    except HpcvolError:
        return None
