"""The job script hands its arguments and the number of tasks to `hpcvol train`."""

import stat
from pathlib import Path

from launched import RunProgram

SCRIPT = Path(__file__).parents[2] / "jobscripts" / "train.sbatch"


def command_that_tells(folder: Path) -> dict[str, str]:
    """Put an `hpcvol` on the path that prints its arguments, one a line."""
    told = folder / "hpcvol"
    told.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    told.chmod(told.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_tasks_become_ranks(run_program: RunProgram, tmp_path: Path) -> None:
    variables = command_that_tells(tmp_path) | {"SLURM_NTASKS": "6"}
    done = run_program(["bash", str(SCRIPT), "my job.toml", "--set", "train.steps=5"], variables=variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["train", "my job.toml", "-n", "6", "--set", "train.steps=5"]


def test_without_a_configuration_it_says_how(run_program: RunProgram, tmp_path: Path) -> None:
    done = run_program(["bash", str(SCRIPT)], variables=command_that_tells(tmp_path))
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr
