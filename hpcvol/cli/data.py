"""`hpcvol data build`: files become a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from hpcvol.cli.reporting import reported
from hpcvol.comm.launcher import launcher
from hpcvol.errors import ConfigError
from hpcvol.train.toml import value_of

data_commands = typer.Typer(
    help="Datasets: folders of HDF5 shards and a manifest.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@data_commands.callback()
def _data() -> None:
    """Keep `build` a command of its own: a group with one command would else be that command."""


@data_commands.command()
@reported
def build(
    kind: Annotated[str, typer.Argument(help="What PATH holds: text, npz, csv or python (file.py:function).")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files and folders to read.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The dataset's folder.")],
    split: Annotated[str, typer.Option(help="Share of the rows of each split: train=.9,val=.05,test=.05")] = "",
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the kind.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is there.")] = False,
) -> None:
    """Build a dataset from files. Under mpiexec or srun each process builds its part; no MPI is started for it."""
    shares, options = parse_split(split), parse_options(option or [])
    from hpcvol.data import build_dataset

    build_dataset(kind, paths, out, split=shares, options=options, part=part_of_launch(), overwrite=overwrite)


def parse_split(text: str) -> dict[str, float] | None:
    """Return `train=.9,val=.1` as `{"train": 0.9, "val": 0.1}`; None for no text.

    Raises:
        ConfigError: not of that form.
    """
    if not text:
        return None
    shares: dict[str, float] = {}
    for piece in text.split(","):
        name, _, share = piece.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise ConfigError(
                f"--split {text!r}: {piece!r} is no share of a split, expected name=number: train=.9,val=.1",
                everywhere=True,
            ) from None
    return shares


def parse_options(texts: list[str]) -> dict[str, object]:
    """Return `["length=256"]` as `{"length": 256}`: values are TOML, or else strings.

    Raises:
        ConfigError: no `=` in one.
    """
    for text in texts:
        if "=" not in text:
            raise ConfigError(f"--option {text!r}: expected key=value", everywhere=True)
    return {key.strip(): value_of(value.strip()) for key, _, value in (text.partition("=") for text in texts)}


def part_of_launch() -> tuple[int, int]:
    """Return (index, number) of this process among those that mpiexec or srun started together, (0, 1) if alone."""
    by = launcher()
    return (0, 1) if by is None or by.num_ranks is None else (by.rank, by.num_ranks)
