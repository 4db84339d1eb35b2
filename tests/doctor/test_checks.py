"""The checks of one host: what they make of good, bad and strange answers."""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from launched import RunProgram

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of
from hpcvol.doctor import compute, memory, network, slurm, storage
from hpcvol.doctor.asking import ask, json_lines
from hpcvol.doctor.examine import examine
from hpcvol.doctor.finding import Finding, Status, ok
from hpcvol.doctor.mpi import check_mpi
from hpcvol.doctor.network import Interface

HPCVOL = [sys.executable, "-m", "hpcvol.cli"]


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in findings}


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs come before all others."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def test_the_command_as_json(run_program: RunProgram) -> None:
    done = run_program([*HPCVOL, "doctor", "--json"])
    said = json.loads(done.stdout)
    wrong = [one for one in said["findings"] if one["status"] == "wrong"]
    assert said["healthy"] is (not wrong)
    assert done.returncode == int(bool(wrong))
    found = {(one["topic"], one["name"]): one for one in said["findings"]}
    assert found["MPI", "library"]["status"] == "ok"
    assert found["MPI", "launcher"]["status"] == "ok"
    assert found["compute", "torch"]["status"] == "ok"
    assert found["storage", "HDF5"]["status"] == "ok"
    assert found["compute", "Numba"]["status"] == "ok"
    assert ("doctor", "check_mpi") not in found
    assert all(one["remedy"] for one in wrong)


def test_the_command_as_a_table(run_program: RunProgram) -> None:
    done = run_program([*HPCVOL, "doctor"])
    assert "MPI\n  ok     library" in done.stdout
    assert "\nstorage\n" in done.stdout
    assert " ok, " in done.stdout.splitlines()[-1]
    assert "hosts are looked at with --hosts a,b" in run_program([*HPCVOL, "doctor", "a,b"]).stderr


def test_hosts_need_names_or_a_job(run_program: RunProgram) -> None:
    done = run_program([*HPCVOL, "doctor", "--hosts"])
    assert done.returncode == 1
    assert "this is none: run it in one" in done.stderr


def test_a_fault_is_heard_of_where_mpi_can() -> None:
    found = by_name(check_mpi())
    expected = Status.OK if vendor_of(loaded_library()) == OPEN_MPI else Status.NOTE
    assert found["faults"].status is expected, found["faults"]


def test_no_mpi_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPI4PY_LIBMPI", "/nowhere/libmpi.so")
    (said,) = check_mpi()
    assert (said.name, said.status) == ("library", Status.WRONG)
    assert said.remedy is not None
    assert "pip install" in said.remedy


def test_an_mpi_that_ends_its_process_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("a setting that lets MPI_Init abort is known of Open MPI only")
    monkeypatch.setenv("OMPI_MCA_pml", "nothing")
    found = by_name(check_mpi())
    assert found["library"].status is Status.OK
    assert found["start"].status is Status.NOTE
    assert "MPI_Init fails" in found["start"].found


def test_no_mpiexec_of_this_mpi_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    said = by_name(check_mpi())
    assert said["launcher" if "launcher" in said else "library"].status is Status.WRONG


CONFIG = """\
Configuration data as of 2026-01-01T00:00:00
JobRequeue              = {requeue}
KillWait                = 45 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
PreemptParameters       = {parameters}
"""
PARTITIONS = (
    "PartitionName=low AllowGroups=ALL GraceTime={grace} PreemptMode={mode} State=UP\n"
    "PartitionName=high AllowGroups=ALL GraceTime=0 PreemptMode=OFF State=UP\n"
)


def policy(requeue: int = 1, grace: int = 30, mode: str = "REQUEUE", parameters: str = "(null)") -> dict[str, Finding]:
    config = slurm.parse_config(CONFIG.format(requeue=requeue, parameters=parameters))
    return by_name(slurm.policy(config, slurm.parse_partitions(PARTITIONS.format(grace=grace, mode=mode))))


def test_slurm_that_requeues_with_grace_is_good() -> None:
    said = policy()
    assert {one.status for one in said.values()} == {Status.OK}
    assert "KILL 45 s after TERM" in said["time limit"].found
    assert "requeue, 30 s after the warning (TERM)" in said["partition low"].found
    assert "not pre-empted" in said["partition high"].found


@pytest.mark.parametrize(
    ("settings", "name", "words"),
    [
        ({"requeue": 0}, "requeue", "JobRequeue=0"),
        ({"grace": 0}, "partition low", "set checkpoint.every_steps"),
        ({"mode": "CANCEL"}, "partition low", "submits itself again"),
        ({"mode": "SUSPEND,GANG"}, "partition low", "suspended run goes on"),
    ],
)
def test_slurms_policies_and_what_they_mean(settings: dict[str, Any], name: str, words: str) -> None:
    said = policy(**settings)[name]
    assert said.status is Status.NOTE
    assert words in f"{said.found} {said.remedy}"


def test_slurm_that_sends_the_users_signal() -> None:
    assert "(USR1 first)" in policy(parameters="preempt_send_user_signal")["partition low"].found


def test_slurm_whose_controller_does_not_answer(on_path: Path) -> None:
    program(on_path, "sinfo", "echo slurm 22.05.8")
    program(on_path, "scontrol", "echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1")
    said = by_name(slurm.check_slurm())
    assert "Unable to contact" in said["controller"].found


def test_no_program_can_keep_the_doctor_waiting(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_SECONDS", 0.5)
    for name in ("sinfo", "scontrol", "srun"):
        program(on_path, name, "sleep 1000 & sleep 1000")
    said = by_name(slurm.check_slurm())
    assert "did not end within 0.5 s" in said["tools"].found


def test_a_program_that_does_not_end_is_ended_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    answer = ask(["sh", "-c", f"sleep 1000 & echo $! >{tmp_path}/pid; echo said; wait"], 0.5)
    assert time.monotonic() - began < 100
    assert (answer.status, answer.stdout) == (None, "said\n")
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 20  # it was killed, and takes a moment to be gone
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until


def test_lines_between_which_libraries_talk() -> None:
    assert json_lines('warning\n{"a": 1}\n[2]\n{"b"\n{"c": 3}') == [{"a": 1}, {"c": 3}]


@pytest.mark.parametrize(
    ("total", "free", "status"),
    [(64, 64, Status.WRONG), (8000, 8000, Status.OK), (8000, 10, Status.WRONG), (200, 199, Status.NOTE)],
)
def test_shared_memory(monkeypatch: pytest.MonkeyPatch, total: int, free: int, status: Status) -> None:
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _path: (total << 20, (total - free) << 20, free << 20))
    said = memory.shared_memory(Path("/dev/shm"))
    assert said.status is status
    assert (said.remedy is None) is (status is Status.OK)


def test_locked_memory_matters_where_there_is_infiniband(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _which: (65536, 65536))
    assert by_name(memory.limits(has_infiniband=True))["locked memory"].status is Status.WRONG
    assert "locked memory" not in by_name(memory.limits(has_infiniband=False))


def test_a_small_control_group_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("536870912\n")
    assert "512 MiB" in memory.cgroup(tmp_path / "memory.max").found
    assert memory.cgroup(tmp_path / "memory.max").status is Status.NOTE
    assert memory.cgroup(tmp_path / "absent").status is Status.OK


def test_bridges_of_containers_are_traps() -> None:
    real = Interface("eth0", "10.0.0.1", "10.0.0.0/24", 1000, is_bridge=False)
    trap = Interface("docker0", "172.17.0.1", "172.17.0.0/16", 0, is_bridge=True)
    said = by_name(network.judge([real, trap]))
    assert said["eth0"].status is Status.OK
    assert said["docker0"].status is Status.NOTE
    assert said["docker0"].remedy is not None
    assert "OMPI_MCA_btl_tcp_if_exclude=lo,docker0" in said["docker0"].remedy
    assert "none but the loopback" in by_name(network.judge([trap]))["interfaces"].found


def test_infiniband(tmp_path: Path) -> None:
    for device, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / device / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "rate").write_text("100 Gb/sec (4X EDR)\n")
    said = by_name(network.infiniband(tmp_path))
    assert said["mlx5_0"].status is Status.OK
    assert "ACTIVE, 100 Gb/sec" in said["mlx5_0"].found
    assert said["mlx5_1"].status is Status.NOTE
    assert list(network.infiniband(tmp_path / "absent")) == []


def test_an_mpiexec_of_another_mpi_is_named(on_path: Path) -> None:
    other = "HYDRA build details" if vendor_of(loaded_library()) == OPEN_MPI else "mpiexec (Open MPI) 5.0"
    program(on_path, "mpiexec", f"echo '{other}'")
    said = [one for one in check_mpi() if one.name == "launcher"]
    assert [one.status for one in said] == [Status.OK, Status.NOTE]
    assert f"{on_path}/mpiexec is of " in said[1].found


def test_a_name_without_an_address_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.socket, "gethostname", lambda: "no-such-host.invalid")
    monkeypatch.setattr(network.socket, "gethostbyname", _no_address)
    assert by_name(network.check_network())["own name"].status is Status.WRONG


def _no_address(_name: str) -> str:
    raise OSError("Name or service not known")


def test_a_folder_for_temporary_files(tmp_path: Path) -> None:
    assert storage.temporary_folder(tmp_path / "absent").status is Status.WRONG
    deep = tmp_path / "a_long_name_that_sockets_have_no_room_for" / "and_more"
    deep.mkdir(parents=True)
    assert storage.temporary_folder(deep).status is Status.NOTE


FACTS: dict[str, Any] = {
    "version": "2.13.0",
    "cuda": None,
    "gpus": [],
    "threads": 2,
    "numerics": {"instruction set": "AVX2", "processor": "p", "torch build": "b", "digest": "d"},
}


def test_a_gpu_that_torch_does_not_see_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    said = by_name(compute.judge(FACTS, 2))["GPU"]
    assert said.status is Status.WRONG
    assert "built for the CPU only" in said.found
    assert by_name(compute.judge(FACTS, 0))["GPU"].status is Status.NOTE
    assert by_name(compute.judge({**FACTS, "cuda": "12", "gpus": ["A", "A"]}, 2))["GPU"].status is Status.OK


def test_kernels_that_cannot_be_kept_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_KERNELS", "raise RuntimeError('cannot cache function: no locator available')")
    (said,) = compute.check_kernels()
    assert said.status is Status.WRONG
    assert "no locator available" in said.found


def test_a_check_that_fails_does_not_silence_the_others() -> None:
    def fails() -> list[Finding]:
        raise ValueError("strange machine")

    def works() -> list[Finding]:
        return [ok("a", "b", "c")]

    failed, worked = examine([fails, works])
    assert "could not be finished: ValueError: strange machine" in failed.found
    assert worked.status is Status.OK


def test_what_loads_slowly_is_not_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_SECONDS", 0.01)
    said = {finding.name: finding for finding in (*compute.check_compute(), *compute.check_kernels())}
    for name in ("torch", "Numba"):
        assert said[name].status is Status.NOTE
        assert "did not load within 0.01 s" in said[name].found
