"""The order of rooms in docs/design.md: a package imports what stands below it, nothing beside or above."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launched import RunProgram

ROOT = Path(__file__).parent.parent

# By layer, from the ground up. Modules of the package itself count with the rooms they stand between.
LAYERS = [
    {"errors", "environment"},
    {"kernels", "callables", "durable", "tracing"},
    {"comm", "codecs", "data"},
    {"collectives"},
    {"elastic"},
    {"strategies"},
    {"guarantees"},
    {"torch"},
    {"train"},
    {"doctor"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# Who may import what, anywhere in a file.
DOORS = {
    "mpi4py": {"comm"},
    "torch": {"torch", "train"},
    "safetensors": {"torch", "train"},
    "h5py": {"data"},
    "numba": {"kernels"},
    "typer": {"cli"},
}


def sources() -> Iterator[Path]:
    yield from sorted((ROOT / "hpcvol").rglob("*.py"))
    yield from sorted((ROOT / "kernels").rglob("*.py"))


def room_of(path: Path) -> str:
    """Return the room that a file is in: a folder, or a module of the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "kernels" if parts[0] == "kernels" else parts[1]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of every import in `path`, but those that only type checkers see."""
    for node in runtime_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from runtime_nodes(node)


def test_there_is_something_to_check() -> None:
    rooms = {room_of(path) for path in sources()}
    assert {"errors", "environment", "kernels", "comm", "collectives", "torch", "train", "cli"} <= rooms


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    for line, name in imports(path):
        package, _, rest = name.partition(".")
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        if package in DOORS:
            assert room in DOORS[package], f"{where}, which only {', '.join(sorted(DOORS[package]))} may"
        if package != "hpcvol" or room == "__init__":
            continue
        other = rest.split(".")[0]
        if room in LEVEL and other in LEVEL and room != other:
            assert LEVEL[other] < LEVEL[room], f"{where}: {other} does not stand below {room}"


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    if room_of(path) == "environment":
        pytest.skip("this is the place")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv"):
            pytest.fail(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)} is hpcvol.environment's")
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names} & {"environ", "getenv", "putenv"}
            assert not names, f"{path.relative_to(ROOT)}:{node.lineno}: {names} are hpcvol.environment's"


def test_every_room_has_its_layer() -> None:
    rooms = {path.parent.name for path in (ROOT / "hpcvol").glob("*/__init__.py")}
    rooms |= {path.stem for path in (ROOT / "hpcvol").glob("*.py") if not path.stem.startswith("__")}
    assert rooms <= set(LEVEL), "add it to LAYERS here and to docs/design.md"


@pytest.mark.parametrize("module", ["hpcvol", "hpcvol.comm", "hpcvol.collectives", "hpcvol.cli.main"])
def test_importing_loads_nothing_heavy(module: str, run_program: RunProgram) -> None:
    script = (
        f"import sys, {module}\n"
        "heavy = [name for name in ('torch', 'mpi4py.MPI', 'h5py', 'numba') if name in sys.modules]\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    ended = run_program([sys.executable, "-c", script])
    assert ended.returncode == 0, f"import {module} loads {ended.stderr}"
