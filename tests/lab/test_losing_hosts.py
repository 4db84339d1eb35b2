"""Hosts that a run loses, their network, their members or all of them: one side goes on, as if nothing had happened."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen

import psutil
import pytest
from digits_project import EXAMPLES, Project, make_project, what_decides
from lab import MakeHosts
from virtual_hosts import VirtualHosts

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of
from hpcvol.data import build_dataset

SECONDS = 150.0
DETECT_SECONDS = 5
HARNESS = Path(__file__).parents[1] / "harness"
# Everybody's errors are kept where they can be read: those of a host that is cut off reach nobody.
PREPARED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {harness!r})
import strikes
strikes.install()
_here = Path(__file__).parent
sys.stderr = (_here / f"stderr-{{strikes.MEMBER}}").open("a", buffering=1)

def hold(step, metrics):
    if step == 8:
        (_here / "held").touch()
        while not (_here / "let_go").exists():
            time.sleep(0.01)

def compute_for_long(step, metrics):
    if step == 4:
        time.sleep(6)
"""


@pytest.fixture(autouse=True)
def _outlives_hosts() -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("members outlive their hosts under Open MPI only")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Training that is held at its eighth step until `let_go` is there."""
    data = tmp_path / "data"
    split = {"train": 0.7, "val": 0.1, "test": 0.2}
    build_dataset("python", [f"{EXAMPLES / 'digits.py'}:samples"], data, split=split, options={})
    made = make_project(tmp_path / "project", data)
    quiet = make_project(tmp_path / "quiet", data)
    quiet.train("run", "train.steps=12")
    code = (made.folder / "digits.py").read_text()
    made.write("digits.py", code.replace("\nimport ", PREPARED.format(harness=str(HARNESS)) + "\nimport ", 1))
    return made


def quiet_summary(project: Project) -> dict[str, object]:
    return Project(project.folder.with_name("quiet")).summary("run")


@contextmanager
def training(
    hosts: VirtualHosts, project: Project, ranks: Mapping[str, int], strikes: list[list[object]], *overrides: str
) -> Iterator[Popen[str]]:
    """Start `hpcvol train` on h0 as a user does who has a list of hosts."""
    hostfile = project.folder / "hosts"
    hostfile.write_text("".join(f"{host} slots={number}\n" for host, number in ranks.items()))
    variables = {
        "PRTE_MCA_prte_default_hostfile": str(hostfile),
        "PRTE_MCA_plm_ssh_agent": str(hosts.remote_shell),
        "STRIKES": json.dumps(strikes),
        "STRUCK": str(project.folder),
    }
    settings = (
        "elastic.enabled=true",
        f"elastic.detect_seconds={DETECT_SECONDS}",
        "train.steps=12",
        "checkpoint.every_steps=4",
        *overrides,
    )
    arguments = [str(project.job), "-n", str(sum(ranks.values())), "--run-dir", str(project.folder / "run")]
    arguments += [word for one in settings for word in ("--set", one)]
    with hosts.running("h0", [sys.executable, "-m", "hpcvol.cli", "train", *arguments], variables=variables) as process:
        yield process


def until(process: Popen[str], path: Path) -> None:
    """Wait until a file is there."""
    limit = time.monotonic() + SECONDS
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, f"{path} is not there"
        time.sleep(0.05)


def end_of(process: Popen[str]) -> tuple[int, str]:
    """Return the status of `hpcvol train`, and all that it printed."""
    stdout, stderr = process.communicate(timeout=SECONDS)
    return process.returncode, stdout + stderr


def members_on(hosts: VirtualHosts, host: str) -> list[psutil.Process]:
    found = []
    for pid in hosts.pids(host):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if "hpcvol.cli" in process.cmdline():
                found.append(process)
    return found


def check_run(project: Project, status: int, said: str, views: list[list[int]]) -> None:
    """Assert that the run ended as a quiet one, each view claimed once, each step committed and told of once."""
    assert status == 0, said
    assert what_decides(project.summary("run")) == what_decides(quiet_summary(project))
    steps = [line["step"] for line in project.metrics("run") if "loss" in line]
    assert steps == list(range(1, 13))
    claimed = sorted((project.folder / "run" / "views").iterdir())
    assert [json.loads(path.read_text())["members"] for path in claimed] == views
    ledger = [json.loads(line) for line in (project.folder / "run" / "ledger.jsonl").read_text().splitlines()]
    assert [line["version"] for line in ledger if "event" not in line] == list(range(1, 13))


@pytest.mark.limit_seconds(400)
@pytest.mark.parametrize("power", ["stays", "goes too"])
def test_one_side_of_a_cut_goes_on(power: str, make_hosts: MakeHosts, project: Project) -> None:
    hosts = make_hosts(2)
    with training(hosts, project, {"h0": 2, "h1": 2}, [], "train.on_metrics=digits.py:hold") as process:
        until(process, project.folder / "held")
        lost = members_on(hosts, "h1")
        assert len(lost) == 2
        hosts.cut("h1")
        if power == "goes too":
            hosts.power_off("h1")
        (project.folder / "let_go").touch()
        until(process, project.folder / "run" / "views" / "00000002")
        decided = time.monotonic()
        _, alive = psutil.wait_procs(lost, timeout=30)
        print(f"the other side has gone {time.monotonic() - decided:.1f} s after the first claimed the run")
        assert not alive
        status, said = end_of(process)
    check_run(project, status, said, [[0, 1, 2, 3], [0, 1]])
    assert "member 2 (h1) and member 3 (h1) have died: 2 members go on" in (project.folder / "stderr-0").read_text()
    if power == "stays":
        theirs = [(project.folder / f"stderr-{rank}").read_text() for rank in (1, 3)]  # as started: across hosts
        assert "members 2, 3 were cut off from the others" in theirs[0]
        assert "error" not in theirs[1]  # one of them speaks


@pytest.mark.limit_seconds(300)
def test_the_members_of_a_host_are_killed(make_hosts: MakeHosts, project: Project) -> None:
    hosts = make_hosts(2)
    with training(hosts, project, {"h0": 1, "h1": 2}, [], "train.on_metrics=digits.py:hold") as process:
        until(process, project.folder / "held")
        lost = members_on(hosts, "h1")
        assert len(lost) == 2
        for member in lost:
            member.kill()
        (project.folder / "let_go").touch()
        status, said = end_of(process)
    check_run(project, status, said, [[0, 1, 2], [0]])


@pytest.mark.limit_seconds(400)
def test_spares_of_another_host_take_the_places_of_a_lost_one(make_hosts: MakeHosts, project: Project) -> None:
    hosts = make_hosts(3)
    settings = "elastic.spares=2", "train.on_metrics=digits.py:hold"
    with training(hosts, project, {"h0": 2, "h1": 2, "h2": 2}, [], *settings) as process:
        until(process, project.folder / "held")
        hosts.cut("h1")
        hosts.power_off("h1")
        (project.folder / "let_go").touch()
        status, said = end_of(process)
    check_run(project, status, said, [[0, 1, 2, 3], [0, 1], [0, 1, 4], [0, 1, 4, 5]])
    for spare in (4, 5):
        assert f"member {spare} (h2) has joined" in (project.folder / "stderr-0").read_text()


@pytest.mark.limit_seconds(300)
def test_who_is_outside_of_mpi_for_long_is_not_silent(make_hosts: MakeHosts, project: Project) -> None:
    hosts = make_hosts(2)
    settings = "elastic.detect_seconds=2", "train.on_metrics=digits.py:compute_for_long"
    with training(hosts, project, {"h0": 1, "h1": 1}, [], *settings) as process:
        status, said = end_of(process)
    check_run(project, status, said, [[0, 1]])


@pytest.mark.limit_seconds(300)
def test_who_was_taken_for_dead_and_wakes_up_writes_nothing(make_hosts: MakeHosts, project: Project) -> None:
    """The first member, which keeps the run and tells of it, is stopped when a step has been agreed upon."""
    hosts = make_hosts(2)
    strikes: list[list[object]] = [[0, "optimizer", 6, "SIGSTOP"]]
    with training(hosts, project, {"h0": 1, "h1": 1}, strikes, "train.on_metrics=digits.py:hold") as process:
        until(process, project.folder / "struck-0-optimizer")
        until(process, project.folder / "run" / "views" / "00000002")
        until(process, project.folder / "held")  # by member 1, which tells of steps now
        (stopped,) = [one for one in members_on(hosts, "h0") if one.status() == psutil.STATUS_STOPPED]
        os.kill(stopped.pid, signal.SIGCONT)
        _, alive = psutil.wait_procs([stopped], timeout=60)
        assert not alive
        (project.folder / "let_go").touch()
        status, said = end_of(process)
    check_run(project, status, said, [[0, 1], [1]])
    assert "member 0 (h0) was taken for dead" in (project.folder / "stderr-0").read_text()
