"""The wheel: everything is in it, in its place, and nothing else is."""

import re
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from built_wheel import FOLDERS
from launched import RunProgram

ROOT = Path(__file__).parents[1]

# Building asks pip for setuptools, which may come over a network.
pytestmark = [pytest.mark.limit_seconds(240), pytest.mark.without_mpi]


def test_the_wheel_holds_every_module_and_no_leftovers(wheel: Path) -> None:
    expected = {
        (f"hpcvol/{folder}" if folder != "hpcvol" else folder) + f"/{file.relative_to(ROOT / folder).as_posix()}"
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".sbatch")
        or (folder == "examples" and file.suffix == ".toml" and file.parent.name == "examples")
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected | {"hpcvol/py.typed"}


def test_the_wheel_works_outside_the_sources(run_program: RunProgram, wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = (
        "import hpcvol.kernels, hpcvol.data; print(hpcvol.kernels.__file__); from hpcvol.cli.main import main; main()"
    )
    variables = {"PYTHONPATH": str(tmp_path / "installed")}
    done = run_program([sys.executable, "-P", "-c", code, "new", str(tmp_path / "demo")], variables=variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/installed/hpcvol/kernels/")
    assert (tmp_path / "demo" / "job.toml").is_file()


def test_every_dependency_has_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {re.split(r"[<>=!~\[; ]", name)[0].lower() for name in wanted} - pinned == set()
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
