"""Building a dataset, in one process or in many that know nothing of each other but the folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from hpcvol.data.manifest import Shard
from hpcvol.data.partition import DEFAULT, parse_split
from hpcvol.data.parts import Part, PartBuild
from hpcvol.data.shard_writer import ShardWriter
from hpcvol.data.sources import Source, open_source
from hpcvol.errors import ConfigError, DataError


def build_dataset(
    kind: str,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    split: str | Mapping[str, float] = DEFAULT,
    options: Mapping[str, Any] | None = None,
    part: tuple[int, int] = (0, 1),
    build_id: str = "",
    overwrite: bool = False,
) -> Path:
    """Build a dataset in folder `out`.

    The result is the same however many parts build it. It appears at once, when the last part is done; a build that is
    killed leaves only `out/.building`, which the next build replaces.

    Args:
        kind: "text", "npz", "csv" or "python"; see `hpcvol.data.sources` for what each takes, and for its options.
        paths: of the input.
        out: the folder; made if it is not there.
        split: share of the samples of each split.
        options: of the kind.
        part: (index, count): this process builds part `index` of `count`. Processes need not run at the same time.
        build_id: a text that all parts of one build share and no other build has (a job's id, say). It keeps a build
            from taking over finished parts that a killed build of the same input left; without it they count where
            names, sizes and times of the input (of kind python: the code) are the same.
        overwrite: replace the dataset in `out`; it stays whole until the new one is complete.

    Returns:
        `out`. The dataset is there once all parts have returned.

    Raises:
        ConfigError: kind, option or split that cannot be.
        DataError: input that cannot be used, `out` that is taken, no space.
    """
    if not 0 <= part[0] < part[1]:
        raise ConfigError(f"Part {part[0]} of {part[1]}: expected an index from 0 to count - 1.")
    shares = parse_split(split)
    source = open_source(kind, [str(path) for path in paths], shares, options or {})
    key = _key(kind, [str(path) for path in paths], shares, options or {}, source, part[1], build_id)
    described = {"kind": kind, "paths": [str(path) for path in paths], "split": shares, "options": dict(options or {})}
    recipe = json.loads(json.dumps(described, default=str))
    try:
        with PartBuild(Path(out), key, *part, recipe, overwrite=overwrite) as build:
            if not build.already_done:
                build.finish(_write_part(source, shares, build))
    except OSError as error:
        raise DataError(
            f"Building {out} failed: {error}. Nothing of it counts as a dataset; free space or change the rights, then "
            "run the same build again."
        ) from error
    return Path(out)


def _write_part(source: Source, shares: Mapping[str, float], build: PartBuild) -> Part:
    """Write the shards of this part's sections."""
    shards: list[tuple[str, int, Shard]] = []
    for section in source.sections(lambda number: number % build.count == build.index):
        with ExitStack() as files:
            writers: dict[str, ShardWriter] = {}
            for split, chunk in section.chunks:
                if split not in writers:
                    writer = ShardWriter(build.folder, split, section.number, source.fields)
                    writers[split] = files.enter_context(closing(writer))
                writers[split].append(chunk)
            shards += [(split, section.number, writer.finish()) for split, writer in writers.items()]
    return Part(source.fields, tuple(shares), source.num_rows(), shards)


def _key(
    kind: str,
    paths: Sequence[str],
    shares: Mapping[str, float],
    options: Mapping[str, Any],
    source: Source,
    count: int,
    build_id: str,
) -> str:
    """Return what tells this build from others in the same folder."""
    described = [kind, paths, list(shares.items()), sorted(options.items()), source.signature, count, build_id]
    return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:16]
