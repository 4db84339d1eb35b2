"""The command as a whole: what it loads, how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest
from launched import RunProgram

HPCVOL = [sys.executable, "-m", "hpcvol.cli"]


@pytest.mark.parametrize("command", ["", "train", "new", "data build", "show", "verify", "doctor"])
def test_help_loads_neither_torch_nor_mpi(command: str) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('loaded', {'torch', 'mpi4py', 'numba', 'h5py'} & set(sys.modules)))\n"
        "from hpcvol.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage: hpcvol" in done.stdout
    assert "loaded set()" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["train"], ["train", "a.toml", "--no-such"], ["train", "a.toml", "-n", "0"], ["nix"]]
)
def test_wrong_usage_exits_with_2(run_program: RunProgram, arguments: list[str]) -> None:
    done = run_program([*HPCVOL, *arguments])
    assert done.returncode == 2
    assert "Usage: hpcvol" in done.stderr


def test_an_error_is_one_message_and_exits_with_1(run_program: RunProgram, tmp_path: Path) -> None:
    done = run_program([*HPCVOL, "train", str(tmp_path / "none.toml")])
    assert done.returncode == 1
    assert done.stderr.startswith(f"hpcvol: error: no configuration file {tmp_path}/none.toml")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_traceback_where_it_is_asked_for(run_program: RunProgram, tmp_path: Path) -> None:
    done = run_program([*HPCVOL, "train", str(tmp_path / "none.toml")], variables={"HPCVOL_TRACEBACK": "1"})
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "hpcvol: error: no configuration file" in done.stderr
