"""`hpcvol new`: a project that works, and nothing overwritten."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpcvol.cli.main import app
from hpcvol.cli.new import Example
from hpcvol.train.config import load_config

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("example", [Example.GPT, Example.DIGITS])
def test_a_project_has_a_configuration_whose_files_are_there(tmp_path: Path, example: Example) -> None:
    folder = tmp_path / "deep" / "demo"
    result = CliRunner().invoke(app, ["new", str(folder), "--example", example])
    assert result.exit_code == 0
    assert f"hpcvol train {folder}/job.toml" in result.stdout
    config = load_config(folder / "job.toml")
    assert Path(config.model.build.rpartition(":")[0]) == folder / f"{example}.py"
    assert (folder / f"{example}.py").read_bytes() == (EXAMPLES / f"{example}.py").read_bytes()
    assert config.data.source is not None
    assert Path(config.data.source.paths[0].rpartition(":")[0]).is_file()


def test_gpt_is_what_one_gets_unasked(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()  # an empty folder is fine
    assert CliRunner().invoke(app, ["new", str(tmp_path / "demo")]).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["gpt.py", "job.toml", "train.sbatch"]


def test_the_job_script_is_copied_as_it_is(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["new", str(tmp_path / "demo")])
    script = Path(__file__).parents[2] / "jobscripts" / "train.sbatch"
    assert (tmp_path / "demo" / "train.sbatch").read_bytes() == script.read_bytes()
    assert f"cd {tmp_path}/demo && sbatch -N 2 train.sbatch job.toml" in result.stdout


def test_a_loop_of_ones_own_has_no_configuration(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["new", str(tmp_path / "demo"), "--example", "own_loop"])
    assert result.exit_code == 0
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["own_loop.py"]
    assert f"mpiexec -n 2 python {tmp_path}/demo/own_loop.py" in result.stdout


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_is_there_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    result = CliRunner().invoke(app, ["new", str(tmp_path / name)])
    assert result.exit_code == 1
    assert "is there already and not an empty folder" in result.stderr
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["file", "folder", "folder/mine"]
