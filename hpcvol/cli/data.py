"""`hpcvol data build`: files become a dataset."""

import re
from pathlib import Path
from typing import Annotated

import typer

from hpcvol.cli.build_progress import BuildProgress
from hpcvol.cli.reporting import reported
from hpcvol.comm.launcher import launcher
from hpcvol.errors import ConfigError

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
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="What PATH holds: text, tokens, npz, csv, images, hdf5, parquet, webdataset or python "
            "(file.py:function).",
        ),
    ],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Files and folders to read; SPLIT=PATH where each is for one split."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The dataset's folder.")],
    split: Annotated[
        str | None, typer.Option(metavar="SHARES", help="Share of each split (train=.9,val=.05,test=.05).")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the kind.")] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Kind hdf5: point to the files where they are, copy nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is there.")] = False,
) -> None:
    """Build a dataset from files. Under mpiexec or srun each process builds its part; no MPI is started for it."""
    options: dict[str, object] = {**parse_options(option or []), **({"link": True} if link else {})}
    from hpcvol.data import Dataset, build_dataset

    index, count = part_of_launch()
    with BuildProgress((index, count)) as progress:
        build_dataset(
            kind,
            parse_paths(paths),
            out,
            split=split,
            options=options,
            part=(index, count),
            overwrite=overwrite,
            progress=progress,
        )
    if count > 1:
        print(f"{out}: part {index + 1} of {count} is done")
        return
    rows = ", ".join(f"{name} {number}" for name, number in Dataset.open(out).splits.items())
    print(f"{out}: {rows} samples")


def parse_paths(texts: list[str]) -> list[str] | dict[str, list[str]]:
    """Return paths as they are, or by split where they are given as `train=a.bin val=b.bin`.

    Raises:
        ConfigError: some say a split and others do not.
    """
    named = [re.fullmatch(r"([A-Za-z][A-Za-z0-9_]*)=(.+)", text) for text in texts]
    if not any(named):
        return texts
    paths: dict[str, list[str]] = {}
    for text, match in zip(texts, named, strict=True):
        if match is None:
            raise ConfigError(
                f"{text!r} says no split, others do: expected SPLIT=PATH for all or none", everywhere=True
            )
        paths.setdefault(match[1], []).append(match[2])
    return paths


def parse_options(texts: list[str]) -> dict[str, str]:
    """Return `["length=256"]` as `{"length": "256"}`: what kind of value it is, the source knows.

    Raises:
        ConfigError: no `=` in one.
    """
    for text in texts:
        if "=" not in text:
            raise ConfigError(f"--option {text!r}: expected key=value", everywhere=True)
    return {key.strip(): value.strip() or value for key, _, value in (text.partition("=") for text in texts)}


def part_of_launch() -> tuple[int, int]:
    """Return (index, number) of this process among those that mpiexec or srun started together, (0, 1) if alone."""
    by = launcher()
    return (0, 1) if by is None or by.num_ranks is None else (by.rank, by.num_ranks)
