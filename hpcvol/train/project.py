"""A configuration and the Python files beside it, for members whose host does not have them."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpcvol.comm import Group, together
from hpcvol.errors import ConfigError
from hpcvol.train import toml
from hpcvol.train.config import Config, load_config, parse_config

MAX_NBYTES = 16 * 2**20
MAX_ENTRIES = 100_000


@dataclass(frozen=True)
class Project:
    """What a member without the files is given.

    Attributes:
        path: the configuration file (absolute, where it is).
        text: what it says.
        files: content of the Python files in its folder, by relative path.
    """

    path: Path
    text: str
    files: dict[str, bytes]


@contextmanager
def load_project(group: Group, path: Path, overrides: Sequence[str]) -> Iterator[Config]:
    """Load a configuration on every member. Collective.

    Where some members have no such file they are given that of the first one that has, with the Python files of its
    folder, which lie in a folder for the time being while the body runs. Paths in the configuration are those of the
    member that has it, whoever reads it.

    Args:
        group: the live ranks.
        path: the configuration file.
        overrides: as for `load_config`.

    Raises:
        ConfigError: no member has it; it is wrong; too much lies beside it to be passed on. The same on every member.
    """
    has = group.gather_objects(path.is_file())
    if all(has) or not any(has):
        with together(group, "reading the configuration"):
            config = load_config(path, overrides)
        yield config
        return
    project: Project | None = None
    owner = has.index(True)
    with together(group, "reading the project"):
        if group.rank == owner:
            project = _read(path.resolve())
    project = group.broadcast_object(project, owner)
    assert project is not None
    with _unpacked(group, None if has[group.rank] else project) as copy:
        with together(group, "reading the configuration"):
            config = parse_config(project.text, project.path, overrides, copy=copy)
        yield config


def _read(path: Path) -> Project:
    files = {}
    nbytes = 0
    for file in _python_files(path.parent):
        content = file.read_bytes()
        nbytes += len(content)
        if nbytes > MAX_NBYTES:
            raise ConfigError(
                f"the Python files in {path.parent}, which hosts without them are given, take more than "
                f"{MAX_NBYTES >> 20} MiB: keep {path.name} in a folder of its own, with its own files only"
            )
        files[str(file.relative_to(path.parent))] = content
    return Project(path, toml.read(path), files)


def _python_files(folder: Path) -> Iterator[Path]:
    """Yield the Python files below `folder`, but not those in hidden folders and virtual environments."""
    entries = 0
    for place, folders, names in os.walk(folder):
        entries += len(folders) + len(names)
        if entries > MAX_ENTRIES:
            raise ConfigError(
                f"{folder} holds more than {MAX_ENTRIES} files, too many to look for the Python files that hosts "
                "without them are given: keep the configuration in a folder of its own, with its own files only"
            )
        if "pyvenv.cfg" in names:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        yield from (Path(place, name) for name in sorted(names) if name.endswith(".py"))


@contextmanager
def _unpacked(group: Group, project: Project | None) -> Iterator[Path | None]:
    """Give the folder in which this node has the Python files of `project`, None where there is none. Collective."""
    folder: Path | None = None
    try:
        with together(group, "unpacking the project"):
            if project is not None and group.node.rank == 0:
                folder = Path(tempfile.mkdtemp(prefix="hpcvol-"))
                for name, content in project.files.items():
                    file = folder / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
        of_node: Path | None = group.node.broadcast_object(folder)
        yield of_node
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
