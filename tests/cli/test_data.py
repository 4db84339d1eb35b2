"""`hpcvol data build`: arguments reach the library, and launched processes build their parts without MPI."""

import sys
from pathlib import Path

import numpy as np
import pytest
from launched import RunProgram
from typer.testing import CliRunner

from hpcvol.cli.main import app
from hpcvol.data import Dataset

pytestmark = pytest.mark.without_mpi


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    rows = np.arange(400).reshape(100, 4)
    np.savetxt(path, rows, fmt="%d", delimiter=";", header="a;b;c;d", comments="")
    return path


def test_build(tmp_path: Path, table: Path) -> None:
    arguments = ["data", "build", "csv", str(table), "--out", str(tmp_path / "shards"), "--split", "train=.8,val=.2"]
    options = ["--option", "delimiter=;", "--option", "label=d"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path}/shards: train 80, val 20 samples\n"
    dataset = Dataset.open(tmp_path / "shards")
    assert dict(dataset.splits) == {"train": 80, "val": 20}
    assert set(dataset.fields) == {"x", "y"}


@pytest.mark.parametrize("name", ["03", "1.50", "1e3", "true", "2024-01-01"])
def test_a_name_that_looks_like_a_number_stays_as_it_was_typed(tmp_path: Path, name: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"{name},other\n" + "1,2\n" * 20)
    arguments = ["data", "build", "csv", str(table), "--out", str(tmp_path / "shards")]
    result = CliRunner().invoke(app, [*arguments, "--option", f"label={name}", "--option", "shard_nbytes=1e6"])
    assert result.exit_code == 0, result.stderr
    assert set(Dataset.open(tmp_path / "shards").fields) == {"x", "y"}


def test_a_dataset_is_replaced_only_when_told_so(tmp_path: Path, table: Path) -> None:
    arguments = ["data", "build", "csv", str(table), "--out", str(tmp_path / "shards"), "--option", "delimiter=;"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "holds a dataset already" in again.stderr
    assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--option", "delimiter"], "--option 'delimiter': expected key=value"),
        (["--option", "delimiter=;", "--option", "delimeter=;"], "Did you mean delimiter?"),
        (["--split", "train=most"], "train=most"),
        (["--split", "train=.5"], "add up to 0.5"),
    ],
)
def test_wrong_arguments(tmp_path: Path, table: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(
        app, ["data", "build", "csv", str(table), "--out", str(tmp_path / "shards"), *arguments]
    )
    assert result.exit_code == 1
    assert words in result.stderr
    assert not (tmp_path / "shards").exists()


LAUNCHERS = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", {}),
    "MPICH": ("PMI_RANK", "PMI_SIZE", {}),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", {"SLURM_STEP_ID": "0"}),
}


@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_each_launched_process_builds_its_part(
    run_program: RunProgram, tmp_path: Path, table: Path, launcher: str
) -> None:
    rank, size, others = LAUNCHERS[launcher]
    out = tmp_path / "shards"
    program = [sys.executable, "-m", "hpcvol.cli", "data", "build", "csv", str(table), "--out", str(out)]
    for part in range(2):
        assert not (out / "dataset.json").exists()
        variables = {rank: str(part), size: "2", **others}
        done = run_program([*program, "--option", "delimiter=;"], variables=variables)
        assert done.returncode == 0, done.stderr
        assert f"part {part + 1} of 2 is done" in done.stdout
    assert sum(Dataset.open(out).splits.values()) == 100
