"""A Slurm of one's own for a test: controller, nodes and munge in a folder, without root, database or system service.

In a test call `slurm_is_needed()` of lab_needs.py first, which skips it where Slurm is not installed. The nodes n0, n1,
... are this machine, or are virtual hosts (`hosts=`), whose names they then have.

    with throwaway_slurm(2) as slurm:
        job = slurm.submit(["-n", "2", script, "job.toml"], folder=project)
        slurm.until(job, lambda: slurm.show(job)["JobState"] == "RUNNING")
        slurm.command("scancel", job)

Partitions differ in how their jobs are pre-empted by those of `urgent`: see `PARTITIONS`.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from virtual_hosts import VirtualHosts

from hpcvol import environment

# For a machine with much other work.
LIMIT_SECONDS = 150.0
POLL_SECONDS = 0.1
# Of a node, whatever the machine has.
NUM_CORES = 2

# A requeued job waits as long as a credential lives: 120 seconds, were it not for cred_expire, which cannot be below 5.
CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={controller}
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=pmi2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,bf_continue,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmdTimeout=10
CompleteWait=0
MailProg=/bin/true
PropagateResourceLimits=NONE
JobRequeue={requeue}
{user_signal}
{nodes}
{partitions}
"""

PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=graceless Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=cancelled Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Settings:
    """What a site may set this way or that.

    Attributes:
        user_signal: a job that is to be pre-empted first gets the signal that it asked for with `--signal`.
        grace_seconds: the time between that and its end; Slurm may take some ten seconds more.
        requeue: jobs that do not say otherwise may be requeued.
    """

    user_signal: bool = True
    grace_seconds: int = 60
    requeue: bool = True


class Slurm:
    """A running throw-away Slurm; made by `throwaway_slurm`.

    Attributes:
        folder: its configuration, logs and state.
        nodes: their names.
        hosts: the virtual hosts that are its nodes, None where all are this machine.
    """

    def __init__(self, folder: Path, nodes: Sequence[str], settings: Settings, hosts: VirtualHosts | None) -> None:
        self.folder = folder
        self.nodes = list(nodes)
        self.hosts = hosts
        self._settings = settings
        self._port = _free_ports(len(nodes) + 1)

    @property
    def variables(self) -> dict[str, str]:
        """What makes the commands of Slurm talk to this one."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def command(self, *argv: str, folder: Path | None = None, check: bool = True) -> str:
        """Run a command of Slurm, on the first virtual host where there are any; return what it printed.

        Raises:
            RuntimeError: it failed, with what it said.
        """
        done = subprocess.run(
            self._on(0, argv, folder),
            cwd=folder,
            env={**environment.snapshot(), **self.variables},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def submit(self, argv: Sequence[str], folder: Path) -> str:
        """Submit a job from `folder` with sbatch's arguments `argv`; return its id."""
        return self.command("sbatch", "--parsable", *argv, folder=folder).strip()

    def show(self, job: str) -> dict[str, str]:
        """Return what `scontrol show job` says of a job or array task."""
        text = self.command("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(\S*)", text.splitlines()[0]))

    def until(self, job: str, condition: Callable[[], object], seconds: float = LIMIT_SECONDS) -> None:
        """Wait until `condition()` holds.

        Raises:
            AssertionError: it does not, after `seconds`; says how `job` stands and what it wrote.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not after {seconds:g} s: {self.show(job)}\n{self.output(job)}")
            time.sleep(POLL_SECONDS)

    def output(self, job: str) -> str:
        """Return what a job has written to its output file."""
        told = re.search(r"^ *StdOut=(.*)", self.command("scontrol", "show", "job", job), re.MULTILINE)
        with suppress(OSError):
            return Path(told[1]).read_text() if told else ""
        return ""

    def _configure(self) -> None:
        text = CONFIGURATION.format(
            controller=f"{self.nodes[0]}(10.77.0.1)" if self.hosts else f"{_hostname()}(127.0.0.1)",
            port=self._port,
            user=_user(),
            folder=self.folder,
            user_signal="SlurmctldParameters=preempt_send_user_signal" if self._settings.user_signal else "",
            requeue=int(self._settings.requeue),
            nodes="\n".join(self._node(index) for index in range(len(self.nodes))),
            partitions=PARTITIONS.format(grace=self._settings.grace_seconds),
        )
        (self.folder / "slurm.conf").write_text(text)

    def start(self) -> None:
        """Start munge, controller and nodes, and wait until all nodes can be had."""
        self._configure()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._daemon(
            0,
            "munged",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.sock",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munge.seed",
            "--force",
        )
        self._daemon(0, "slurmctld", "-c")
        for index, node in enumerate(self.nodes):
            self._daemon(index, "slurmd", "-N", node)
        end = time.monotonic() + LIMIT_SECONDS
        while self.command("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D", check=False).strip() != str(
            len(self.nodes)
        ):
            if time.monotonic() > end:
                logs = "".join(f"--- {path.name}\n{path.read_text()}" for path in self.folder.glob("*.log"))
                raise RuntimeError(f"Slurm did not start\n{logs}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Kill all jobs, daemons and whatever either has started."""
        end = time.monotonic() + LIMIT_SECONDS
        while pids := self.processes():
            assert time.monotonic() < end, f"processes of Slurm that cannot be killed: {pids}"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def processes(self) -> list[int]:
        """Return the live processes that this Slurm or its jobs started: it is in their environment."""
        mark = f"SLURM_CONF={self.variables['SLURM_CONF']}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                # Of a process that has ended and nobody looked at it is empty.
                if mark in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
        return found

    def _node(self, index: int) -> str:
        place = f"NodeAddr=127.0.0.1 NodeHostname={_hostname()} Port={self._port + 1 + index}"
        if self.hosts:
            place = f"NodeAddr={self.hosts.address(self.nodes[index])}"
        return f"NodeName={self.nodes[index]} {place} CPUs={NUM_CORES} State=UNKNOWN"

    def _daemon(self, index: int, *argv: str) -> None:
        program = shutil.which(argv[0], path=f"{environment.variable('PATH')}:/usr/sbin:/sbin")
        done = subprocess.run(
            self._on(index, [program or argv[0], *argv[1:]]),
            env={**environment.snapshot(), **self.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{argv[0]} does not start: {done.stdout}")

    def _on(self, index: int, argv: Sequence[str], folder: Path | None = None) -> list[str]:
        return self.hosts.enter(self.nodes[index], argv, folder) if self.hosts else list(argv)


@contextmanager
def throwaway_slurm(
    num_nodes: int = 2, settings: Settings | None = None, *, hosts: VirtualHosts | None = None
) -> Iterator[Slurm]:
    """Start a Slurm of `num_nodes` nodes that are this machine, or of virtual hosts.

    On leaving its jobs and daemons are killed, whatever happened.
    """
    nodes = hosts.names if hosts else [f"n{index}" for index in range(num_nodes)]
    # Slurm's own paths are short: a Unix socket's name may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    slurm = Slurm(folder, nodes, settings or Settings(), hosts)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(number: int) -> int:
    """Return the first of `number` ports in a row that nobody listens at."""
    for first in range(21000 + os.getpid() % 5000, 32000, number):
        with suppress(OSError):
            for port in range(first, first + number):
                with socket.create_server(("127.0.0.1", port)):
                    pass
            return first
    raise RuntimeError("no free ports")


def _hostname() -> str:
    return socket.gethostname().partition(".")[0]


def _user() -> str:
    return psutil.Process().username()


def main() -> None:
    """Start a Slurm and keep it until Ctrl-C: `python tests/lab/throwaway_slurm.py [NODES]`."""
    with throwaway_slurm(int((*sys.argv[1:], "2")[0])) as slurm, suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={slurm.variables['SLURM_CONF']}\nCtrl-C stops it", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
