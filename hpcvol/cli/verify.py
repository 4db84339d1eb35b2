"""`hpcvol verify`: reads all of a dataset, a checkpoint or a run, and names everything that is damaged. No MPI."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from hpcvol.cli.kinds import Kind, kind_of
from hpcvol.cli.reporting import reported

OnRead = Callable[[int], object]
EXIT_DAMAGED = 1


@reported
def verify(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a dataset, a checkpoint or a run.")],
) -> None:
    """Read all of a dataset, a checkpoint or a run, and name everything in it that is damaged (then exit with 1)."""
    checks = {Kind.DATASET: _verify_dataset, Kind.CHECKPOINT: _verify_checkpoint, Kind.RUN: _verify_run}
    kind = kind_of(path)
    damaged, notes, read = checks[kind](path)
    for note in notes:
        print(f"note: {note}")
    for line in damaged:
        print(f"damaged: {line}")
    if damaged:
        print(f"{kind} {path}: {len(damaged)} {'thing is' if len(damaged) == 1 else 'things are'} damaged")
        raise typer.Exit(EXIT_DAMAGED)
    print(f"{kind} {path}: whole; {read}")


def _verify_dataset(path: Path) -> tuple[list[str], list[str], str]:
    from hpcvol.data.manifest import read_manifest
    from hpcvol.data.verify import dataset_nbytes, unlisted_files, verify_dataset

    manifest = read_manifest(path)
    nbytes = dataset_nbytes(manifest)
    with _progress(f"reading {path}", nbytes) as on_read:
        damaged = [str(damage) for damage in verify_dataset(path, on_read)]
    notes = [f"{one} lies in the dataset's folder and is no part of it" for one in unlisted_files(path, manifest)]
    shards = sum(len(shards) for shards in manifest.splits.values())
    return damaged, notes, f"{nbytes} bytes of {shards} shards are what the manifest says"


def _verify_checkpoint(path: Path) -> tuple[list[str], list[str], str]:
    from hpcvol.train.verify import checkpoint_nbytes, verify_checkpoint

    with _progress(f"reading {path}", checkpoint_nbytes(path)) as on_read:
        damaged = verify_checkpoint(path, on_read)
    return damaged, [], "sizes, digests and numbers are good"


def _verify_run(path: Path) -> tuple[list[str], list[str], str]:
    from hpcvol.train.verify import checkpoint_nbytes, verify_run

    nbytes = sum(checkpoint_nbytes(one) for one in (path / "checkpoints").glob("step-*"))
    with _progress(f"reading {path}", nbytes) as on_read:
        findings = verify_run(path, on_read)
    return findings.damaged, findings.notes, "configuration, metrics, checkpoints, ledger and summary are good"


@contextmanager
def _progress(doing: str, total: int) -> Iterator[OnRead]:
    """Draw a progress bar on a terminal; elsewhere draw nothing."""
    if not sys.stderr.isatty():
        yield lambda _nbytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)
