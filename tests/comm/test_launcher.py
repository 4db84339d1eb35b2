"""What the environment says of the launcher."""

import pytest

from hpcvol.comm import under_launcher
from hpcvol.comm.launcher import MPICH, OPEN_MPI, launcher, library_name, vendor_of

BY_OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "PMIX_RANK": "2"}
BY_MPICH = {"PMI_SIZE": "3", "PMI_RANK": "1", "HYDI_CONTROL_FD": "7"}
BY_SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (BY_OPEN_MPI, ("mpiexec of Open MPI", 4, 2)),
        (BY_MPICH, ("mpiexec of MPICH", 3, 1)),
        (BY_SRUN, ("srun", 4, 1)),
        ({"PMI_SIZE": "8", "PMI_RANK": "7"}, ("a PMI launcher", 8, 7)),
        ({"PMIX_RANK": "3"}, ("a PMIx launcher", 4, 3)),
        ({"PMIX_RANK": "0"}, ("a PMIx launcher", None, 0)),
        # mpiexec inside a job of Slurm starts its daemons with srun: the ranks are mpiexec's.
        ({**BY_SRUN, **BY_OPEN_MPI}, ("mpiexec of Open MPI", 4, 2)),
        ({**BY_SRUN, **BY_MPICH}, ("mpiexec of MPICH", 3, 1)),
        ({**BY_SRUN, "PMI_SIZE": "4", "PMI_RANK": "1"}, ("srun", 4, 1)),
        (
            {**BY_SRUN, "SLURM_STEP_NUM_TASKS": "1", "PMI_SIZE": "1", "PMI_RANK": "0", "MPI_LOCALNRANKS": "1"},
            ("mpiexec of MPICH", 1, 0),
        ),
    ],
)
def test_the_launcher_is_known(
    variables: dict[str, str], expected: tuple[str, int | None, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    by = launcher()
    assert by is not None
    assert (by.name, by.num_ranks, by.rank) == expected
    assert under_launcher()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
        # The batch script and the shell of salloc are numbered like steps.
        {"SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_a_process_on_its_own_is_known(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launcher() is None
    assert not under_launcher()


def test_one_task_of_srun_is_a_shell_to_launch_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**BY_SRUN, "SLURM_STEP_NUM_TASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not under_launcher()


def test_of_nested_launchers_the_library_s_own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**BY_OPEN_MPI, **BY_MPICH}.items():
        monkeypatch.setenv(name, value)
    for vendor in (OPEN_MPI, MPICH):
        by = launcher(vendor)
        assert by is not None
        assert by.vendor == vendor


@pytest.mark.parametrize(
    ("version", "vendor", "name"),
    [
        ("Open MPI v5.0.11, package: Open MPI x Distribution, ident: 5.0.11\0", OPEN_MPI, "Open MPI v5.0.11"),
        ("MPICH Version:      5.0.2\nMPICH Release date: Fri Sep 25\n", MPICH, "MPICH 5.0.2"),
        ("Intel(R) MPI Library 2021.11 for Linux* OS\n", MPICH, "Intel(R) MPI Library 2021.11 for Linux* OS"),
        ("MPI VERSION    : CRAY MPICH version 8.1.28 (ANL base 3.4a2)\n", MPICH, None),
        ("mpiexec (Open MPI) 5.0.11\n", OPEN_MPI, None),
        ("mpirun (Open MPI) 4.1.6\n", OPEN_MPI, None),
        ("HYDRA build details:\n    Version:    5.0.2\n", MPICH, None),
        ("something else 1.0", None, "something else 1.0"),
    ],
)
def test_vendors_are_known_by_their_words(version: str, vendor: str | None, name: str | None) -> None:
    assert vendor_of(version) == vendor
    if name is not None:
        assert library_name(version) == name
