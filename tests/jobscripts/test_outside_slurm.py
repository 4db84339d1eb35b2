"""The job script by itself: what it hands to `hpcvol train`, and what it does where there is no Slurm to talk to."""

import shutil
from pathlib import Path

import pytest
from launched import RunProgram

SCRIPT = Path(__file__).parents[2] / "jobscripts" / "train.sbatch"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the script and an `hpcvol` that prints its arguments, one a line."""
    shutil.copy(SCRIPT, tmp_path)
    told = tmp_path / "hpcvol"
    told.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    told.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_arguments_are_handed_on(run_program: RunProgram, folder: Path) -> None:
    done = run_program(["bash", "train.sbatch", "my job.toml", "--set", "model.args={a=1, b=2}"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *("train", "my job.toml", "--run-dir", "./runs/my job"),
        *("--set", "model.args={a=1, b=2}"),
    ]
    assert [path.name for path in (folder / "runs" / "my job").iterdir()] == [".starts"]


@pytest.mark.parametrize("words", [("--run-dir", "a b"), ("--run-dir=a b",)])
def test_a_run_directory_is_taken(run_program: RunProgram, folder: Path, words: tuple[str, ...]) -> None:
    done = run_program(["bash", "train.sbatch", "deep/job.toml", *words, "--fresh"])
    assert done.stdout.splitlines() == ["train", "deep/job.toml", "--run-dir", "a b", "--fresh"]
    assert not (folder / "deep").exists()


@pytest.mark.usefixtures("folder")
def test_in_an_array_each_task_has_its_own(run_program: RunProgram) -> None:
    task = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}
    done = run_program(["bash", "train.sbatch", "job-%a.toml", "--set", "train.seed=%a"], variables=task)
    assert done.stdout.splitlines() == [
        *("train", "job-3.toml", "--run-dir", "./runs/job-3-3"),
        *("--set", "train.seed=3"),
    ]


def test_site_sh_beside_it_is_read(run_program: RunProgram, folder: Path) -> None:
    (folder / "site.sh").write_text("hpcvol=(echo in the container: hpcvol)\n")
    done = run_program(["bash", "train.sbatch", "job.toml"])
    assert done.stdout == "in the container: hpcvol train job.toml --run-dir ./runs/job\n"


def test_a_failure_is_handed_on(run_program: RunProgram, folder: Path) -> None:
    (folder / "hpcvol").write_text("#!/bin/bash\nexit 7\n")
    done = run_program(["bash", "train.sbatch", "job.toml"])
    assert done.returncode == 7
    assert "training failed" in done.stderr


def test_what_was_stopped_without_slurm_says_how_it_goes_on(run_program: RunProgram, folder: Path) -> None:
    (folder / "hpcvol").write_text("#!/bin/bash\nexit 130\n")
    done = run_program(["bash", "train.sbatch", "my job.toml"], variables={"PATH": f"{folder}:/usr/bin:/bin"})
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(f"{folder}/train.sbatch my\\ job.toml")


@pytest.mark.usefixtures("folder")
def test_without_a_configuration_it_says_how(run_program: RunProgram) -> None:
    done = run_program(["bash", "train.sbatch"])
    assert done.returncode == 1
    assert "usage: sbatch" in done.stderr
