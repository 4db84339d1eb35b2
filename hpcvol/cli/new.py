"""`hpcvol new`: a working project, made from an example."""

from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from hpcvol.cli.reporting import reported
from hpcvol.errors import ConfigError

CONFIG_NAME = "job.toml"


class Example(StrEnum):
    """The examples that a project can begin from."""

    GPT = "gpt"
    DIGITS = "digits"
    OWN_LOOP = "own_loop"


@reported
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make; it must not hold anything yet.")],
    example: Annotated[Example, typer.Option(help="The example to begin from.")] = Example.GPT,
) -> None:
    """Make a project from an example: a configuration and the model file that it names."""
    copied = copy_example(example, folder)
    print(f"{folder}: {', '.join(copied)}")
    print(f"next: {next_command(example, folder)}")


def copy_example(example: Example, folder: Path) -> list[str]:
    """Copy the files of `example` into `folder`, its configuration as job.toml; return their names.

    Raises:
        ConfigError: `folder` is a file, or not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not an empty folder: name another one, nothing was changed")
    names = {f"{example}.py": f"{example}.py", f"{example}.toml": CONFIG_NAME}
    source = resources.files("hpcvol.examples")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, copy in names.items():
            if source.joinpath(name).is_file():
                (folder / copy).write_bytes(source.joinpath(name).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot make the project {folder}: {error}") from None
    return sorted(path.name for path in folder.iterdir())


def next_command(example: Example, folder: Path) -> str:
    """Return what to type next."""
    if example is Example.OWN_LOOP:
        return f"mpiexec -n 2 python {folder / 'own_loop.py'}"
    return f"hpcvol train {folder / CONFIG_NAME} -n 2"
