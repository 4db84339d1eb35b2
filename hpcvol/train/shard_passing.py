"""Datasets that some hosts do not have: members that have the shards pass them on, to the others' caches."""

from itertools import chain
from pathlib import Path

from hpcvol.comm import Group, together
from hpcvol.comm.files import pass_file
from hpcvol.data import Dataset
from hpcvol.data.cache import copy_name, free_nbytes, is_intact, make_folder
from hpcvol.data.manifest import FILE_NAME, Shard, parse_manifest
from hpcvol.errors import DataError


def open_passed(group: Group, folder: Path, cache: Path) -> tuple[Dataset, int]:
    """Open the dataset in `folder`; a node that lacks shards of it gets them into its folder `cache`. Collective.

    What lies in a cache already, from a run before, is not passed again. Shards have their names in the cache once they
    are whole; they are checked when they are read, as all are.

    Args:
        group: the live ranks.
        folder: of the dataset.
        cache: the node's own folder.

    Returns:
        The dataset, and how many shards were passed to some node.

    Raises:
        DataError: no member has the dataset, or a shard of it; a node has no room. The same on every member.
    """
    manifests = group.gather_objects((folder / FILE_NAME).is_file())
    text = ""
    with together(group, f"reading the manifest of {folder}"):
        if not any(manifests) or manifests.index(True) == group.rank:
            Dataset.open(folder)  # says what is wrong where nobody has it
            text = (folder / FILE_NAME).read_text(encoding="utf-8")
    text = group.broadcast_object(text, manifests.index(True))
    with together(group, f"reading the manifest of {folder}"):
        manifest = parse_manifest(text, folder / FILE_NAME)
        shards = list(chain.from_iterable(manifest.splits.values()))
        lacking = [number for number, shard in enumerate(shards) if not _is_there(folder / shard.file, shard)]
        copies = {number: cache / copy_name(shards[number]) for number in lacking}
        asked = []
        if group.node.rank == 0:
            asked = [number for number in lacking if not is_intact(copies[number], shards[number])]
            _refuse_too_much(cache, sum(shards[number].nbytes for number in asked), folder)
    passed = _pass(group, folder, shards, set(lacking), {number: copies[number] for number in asked})
    group.barrier()  # a node's first rank has written what its others read
    return Dataset(folder, manifest, {shards[number].file: copies[number] for number in lacking}), passed


def _pass(group: Group, folder: Path, shards: list[Shard], lacking: set[int], asked: dict[int, Path]) -> int:
    """Pass each shard that some node asked for, from the first rank that has it; return how many. Collective."""
    everybody = group.gather_objects((frozenset(lacking), frozenset(asked)))
    wanted = sorted(frozenset().union(*(own for _, own in everybody)))
    owners = {
        number: next((rank for rank, (missing, _) in enumerate(everybody) if number not in missing), None)
        for number in wanted
    }
    with together(group, f"looking for the shards of {folder}"):
        for number, owner in owners.items():
            if owner is None:
                raise DataError(
                    f"Shard {folder / shards[number].file} is missing on every host of this run. Copy the dataset to "
                    "one of them, or build it again."
                )
    for number, owner in owners.items():
        assert owner is not None
        pass_file(group, owner, folder / shards[number].file, asked.get(number))
    return len(wanted)


def _is_there(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.nbytes
    except OSError:
        return False


def _refuse_too_much(cache: Path, nbytes: int, folder: Path) -> None:
    if nbytes == 0:
        return
    make_folder(cache)
    if nbytes > free_nbytes(cache):
        raise DataError(
            f"This host lacks {nbytes / 1e9:.3g} GB of {folder}, and data.cache = {cache} has room for "
            f"{free_nbytes(cache) / 1e9:.3g} GB: name a larger disk, or copy the data where this host sees it."
        )
