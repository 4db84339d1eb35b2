"""Every command in the README is run, as it stands but for how long it takes; and its diff is the examples' own."""

import difflib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from launched import RunProgram

from hpcvol.comm import launch_command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Whole commands, most of which start ranks, each of which imports torch.
LIMIT_SECONDS = 300
pytestmark = pytest.mark.limit_seconds(LIMIT_SECONDS)
HPCVOL = [sys.executable, "-m", "hpcvol.cli"]
# A few steps instead of some minutes.
SHORT = ["--set", "train.steps=2", "--set", "train.validate_every_steps=2", "--set", "data.path=DATA"]


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[str]:
    """Yield the lines of the README's shell blocks, without comments."""
    for block in blocks("sh"):
        for line in block.splitlines():
            yield line.partition("  #")[0].strip()


def make_recipe(target: str) -> list[list[str]]:
    """Return the two commands that `make TARGET` is for, without those that install something first."""
    lines = subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    commands = [shlex.split(line) for line in lines.splitlines() if re.match(r"\.venv(-mpich)?/bin/", line)]
    return [command for command in commands if command[1] != "-m"][-2:]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little text as a dataset, made by the README's own command."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "hpcvol", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    command = next(line for line in commands() if line.startswith("hpcvol data build"))
    subprocess.run([*HPCVOL, *shlex.split(command)[1:]], cwd=folder, check=True)
    return folder / "data"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A project, made by the README's own command; trained on little."""
    folder = tmp_path_factory.mktemp("project")
    command = next(line for line in commands() if line.startswith("hpcvol new"))
    subprocess.run([*HPCVOL, *shlex.split(command)[1:]], cwd=folder, check=True)
    job = folder / "demo" / "job.toml"
    # The example's source would be built where the path is; the path is there already.
    job.write_text(job.read_text().replace('path = "data-gpt"', f'path = "{data}"'))
    return folder


def test_no_command_is_forgotten() -> None:
    known = {
        "make train",
        "make test",
        "hpcvol new demo",
        "hpcvol train demo/job.toml -n 2",
        "mpiexec -n 2 hpcvol train demo/job.toml",
        "hpcvol data build text src/ --out data --split train=.9,val=.05,test=.05",
        "python benchmarks/data.py --quick",
        "python benchmarks/data_cold.py --quick",
        "python benchmarks/data_peers.py --quick",
        "python benchmarks/dataloader.py --quick",
        "mpiexec -n 2 python benchmarks/train_step.py --quick",
        "mpiexec -n 4 python benchmarks/dealing.py --quick",
        "mpiexec -n 3 python benchmarks/trust.py --quick",
        "mpiexec -n 4 python benchmarks/stragglers.py --quick",
        "mpiexec -n 2 python benchmarks/parameter_server.py --quick",
        "python benchmarks/recovery.py --quick",
        "python benchmarks/overlap.py --quick",
        "python benchmarks/startup.py --quick",
        "python benchmarks/scaling.py --quick",
        "python benchmarks/data_passed.py --quick",
    }
    assert set(commands()) == known


def test_extras_that_the_readme_installs_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"hpcvol\[(\w+)\]", README))
    assert named
    assert named <= set(extras)


@pytest.mark.any_mpi
def test_make_train(data: Path, tmp_path: Path, run_program: RunProgram) -> None:
    train, report = make_recipe("train")
    assert train[1:] == ["train", "examples/gpt.toml", "-n", "2"]
    short = [part.replace("DATA", str(data)) for part in SHORT]
    run_dir = str(tmp_path / "run")
    # `cd` as make does, with this Python instead of .venv's.
    result = run_program(
        [*HPCVOL, "train", str(ROOT / train[2]), *train[3:], *short, "--run-dir", run_dir], seconds=120
    )
    assert result.returncode == 0, result.stderr
    result = run_program([sys.executable, str(ROOT / report[1]), run_dir], seconds=150)
    assert result.returncode == 0, result.stderr
    assert "this model, after 2 steps" in result.stdout


def test_make_test_runs_this_suite_with_both_libraries() -> None:
    # The second library leaves out what says the same of any, and what runs again on four ranks.
    left_out = ["-m", "not without_mpi and not any_mpi and not again_on_ranks"]
    assert [line[1:] for line in make_recipe("test")] == [["tests/run.py"], ["tests/run.py", *left_out]]


def test_hpcvol_train_and_the_same_under_mpiexec(demo: Path, run_program: RunProgram) -> None:
    run = [*HPCVOL, "train", str(demo / "demo" / "job.toml"), "--set", "train.steps=2"]
    result = run_program([*run, "-n", "2"], seconds=120)
    assert result.returncode == 0, result.stderr
    assert "complete: 2 steps" in result.stdout
    launch = launch_command(2, [*run, "--run-dir", str(demo / "again")])
    result = run_program(launch.argv, variables=launch.environment, seconds=120)
    assert result.returncode == 0, result.stderr
    assert "complete: 2 steps" in result.stdout


OF_DATA_NAMES = ("data", "data_cold", "data_peers", "dataloader")
OF_DATA = [pytest.param(name, marks=pytest.mark.without_mpi) for name in OF_DATA_NAMES]


@pytest.mark.any_mpi
@pytest.mark.parametrize("name", [*OF_DATA, "train_step", "dealing", "trust", "stragglers", "startup"])
def test_benchmarks(name: str, tmp_path: Path, run_program: RunProgram) -> None:
    json_file = tmp_path / "rows.json"
    argv = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--json", str(json_file)]
    ranks = {"train_step": 2, "dealing": 4, "trust": 3, "stragglers": 4}.get(name)
    launch = launch_command(ranks, argv) if ranks else None
    result = run_program(launch.argv if launch else argv, variables=launch.environment if launch else {}, seconds=280)
    assert result.returncode == 0, result.stderr
    assert name in result.stdout
    assert '"contender": "hpcvol' in json_file.read_text()


def test_the_diff_is_that_of_the_examples() -> None:
    plain, own = ((ROOT / "examples" / f"{name}_loop.py").read_text().splitlines() for name in ("plain", "own"))
    expected = [
        line
        for line in difflib.unified_diff(plain, own, n=0, lineterm="")
        if not line.startswith(("---", "+++", "@@")) and line not in ("+", "-") and '"""' not in line
    ]
    (shown,) = blocks("diff")
    assert [line for line in shown.splitlines() if line[:1] in ("+", "-")] == expected
