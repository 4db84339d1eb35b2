"""What lies at a path: a dataset, a checkpoint or a run, told by the file that each of them has."""

from enum import StrEnum
from pathlib import Path

from hpcvol.errors import HpcvolError
from hpcvol.train.run_directory import holds_run


class Kind(StrEnum):
    """The things that hpcvol keeps in folders."""

    DATASET = "dataset"
    CHECKPOINT = "checkpoint"
    RUN = "run"


# The file that makes a folder one of them; a run has a first line too, because a user's file may have that name.
_MARKS = {"dataset.json": Kind.DATASET, "state.json": Kind.CHECKPOINT}


def kind_of(path: Path) -> Kind:
    """Return what lies at `path`.

    Raises:
        HpcvolError: none of them; names those that lie right below it.
    """
    kind = _kind(path)
    if kind is not None:
        return kind
    if not path.exists():
        raise HpcvolError(f"there is nothing at {path}: expected the folder of a dataset, a checkpoint or a run")
    if not path.is_dir():
        raise HpcvolError(f"{path} is a file: expected the folder of a dataset, a checkpoint or a run")
    below = [f"{one} ({kind})" for one in sorted(path.iterdir()) if (kind := _kind(one)) is not None]
    if not below and (path / ".building").exists():
        raise HpcvolError(
            f"{path} is not a dataset yet: a build was begun there and is not complete. Wait for it, or run the same "
            "`hpcvol data build` again"
        )
    hint = f"; below it there are {', '.join(below)}" if below else ""
    raise HpcvolError(
        f"{path} is neither a dataset (it has no dataset.json), nor a checkpoint (no state.json), nor a run (no "
        f"config.toml of hpcvol){hint}"
    )


def _kind(path: Path) -> Kind | None:
    if holds_run(path):
        return Kind.RUN
    return next((kind for mark, kind in _MARKS.items() if (path / mark).is_file()), None)
