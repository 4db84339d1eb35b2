"""`hpcvol new`: a working project, made from an example."""

from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from hpcvol.cli.reporting import reported
from hpcvol.errors import ConfigError

CONFIG_NAME = "job.toml"
SCRIPT_NAME = "train.sbatch"


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
    """Make a project from an example: a configuration, the model file that it names, and a job script for Slurm."""
    copied = copy_example(example, folder)
    print(f"{folder}: {', '.join(copied)}")
    print("\n".join(f"next: {command}" for command in next_commands(example, folder)))


def copy_example(example: Example, folder: Path) -> list[str]:
    """Copy the files of `example` into `folder`, its configuration as job.toml; return the names of all.

    With a configuration goes the job script that trains it under Slurm.

    Raises:
        ConfigError: `folder` is a file, or not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not an empty folder: name another one, nothing was changed")
    examples = resources.files("hpcvol.examples")
    names = {f"{example}.py": examples / f"{example}.py"}
    if (examples / f"{example}.toml").is_file():
        names |= {
            CONFIG_NAME: examples / f"{example}.toml",
            SCRIPT_NAME: resources.files("hpcvol.jobscripts") / SCRIPT_NAME,
        }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, original in names.items():
            (folder / name).write_bytes(original.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot make the project {folder}: {error}") from None
    return sorted(path.name for path in folder.iterdir())


def next_commands(example: Example, folder: Path) -> list[str]:
    """Return what to type next: on this machine, or on a cluster."""
    if example is Example.OWN_LOOP:
        return [f"mpiexec -n 2 python {folder / 'own_loop.py'}"]
    submit = f"sbatch -N 2 {SCRIPT_NAME} {CONFIG_NAME}"
    return [f"hpcvol train {folder / CONFIG_NAME} -n 2", f"cd {folder} && {submit}   (on a cluster with Slurm)"]
