"""Building a dataset, in one process or in many that know nothing of each other but the folder."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from hpcvol.data.manifest import Shard
from hpcvol.data.partition import DEFAULT, parse_split
from hpcvol.data.parts import Part, PartBuild
from hpcvol.data.shard_writer import ShardWriter
from hpcvol.data.sources import LinkedSection, Source, open_source
from hpcvol.data.sources.assigned import AssignedSources
from hpcvol.errors import ConfigError, DataError

Progress = Callable[[int, int | None], None]


def build_dataset(
    kind: str,
    paths: Sequence[str | Path] | Mapping[str, Sequence[str | Path]],
    out: str | Path,
    *,
    split: str | Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
    part: tuple[int, int] = (0, 1),
    build_id: str = "",
    overwrite: bool = False,
    progress: Progress = lambda _rows, _expected: None,
) -> Path:
    """Build a dataset in folder `out`.

    The result is the same however many parts build it. It appears at once, when the last part is done; a build that is
    killed leaves only `out/.building`, which the next build replaces.

    Args:
        kind: "text", "tokens", "npz", "csv", "python", "images", "hdf5", "parquet" or "webdataset"; the module
            `hpcvol.data.sources.KIND` says what each takes, and its options.
        paths: of the input; or by split, where each file is for one split.
        out: the folder; made if it is not there.
        split: share of the samples of each split (train=.9,val=.05,test=.05), where paths do not say it.
        options: of the kind.
        part: (index, count): this process builds part `index` of `count`. Processes need not run at the same time.
        build_id: a text that all parts of one build share and no other build has (a job's id, say). It keeps a build
            from taking over finished parts that a killed build of the same input left; without it they count where
            names, sizes and times of the input (of kind python: the code) are the same.
        overwrite: replace the dataset in `out`; it stays whole until the new one is complete.
        progress: called now and then as progress(samples that this part has written, samples of the whole input or None
            where that is not known before the end).

    Returns:
        `out`. The dataset is there once all parts have returned.

    Raises:
        ConfigError: kind, option or split that cannot be.
        DataError: input that cannot be used, `out` that is taken, no space.
    """
    if not 0 <= part[0] < part[1]:
        raise ConfigError(f"Part {part[0]} of {part[1]}: expected an index from 0 to count - 1.")
    shares, source = _open(kind, paths, split, options or {})
    described = {"kind": kind, "paths": paths, "split": shares, "options": dict(options or {})}
    recipe = json.loads(json.dumps(described, default=str))
    key = _key([recipe, source.signature, part[1], build_id])
    try:
        with PartBuild(Path(out), key, *part, recipe, overwrite=overwrite) as build:
            if not build.already_done:
                build.finish(_write_part(source, tuple(shares), build, progress))
    except OSError as error:
        raise DataError(
            f"Building {out} failed: {error}. Nothing of it counts as a dataset; free space or change the rights, then "
            "run the same build again."
        ) from error
    return Path(out)


def _open(
    kind: str,
    paths: Sequence[str | Path] | Mapping[str, Sequence[str | Path]],
    split: str | Mapping[str, float] | None,
    options: Mapping[str, Any],
) -> tuple[dict[str, float], Source]:
    """Return the share of each split, and the source."""
    if not isinstance(paths, Mapping):
        shares = parse_split(DEFAULT if split is None else split)
        return shares, open_source(kind, [str(path) for path in paths], shares, options)
    if split is not None:
        raise ConfigError(f"The paths say which split they are for ({', '.join(paths)}): leave the shares {split} out.")
    shares = parse_split({name: 1 / len(paths) for name in paths})
    return shares, AssignedSources(
        {name: open_source(kind, [str(path) for path in own], {name: 1.0}, options) for name, own in paths.items()}
    )


def _write_part(source: Source, splits: tuple[str, ...], build: PartBuild, progress: Progress) -> Part:
    """Write the shards of this part's sections."""
    written = 0

    def count(rows: int) -> None:
        nonlocal written
        written += rows
        progress(written, source.expected_rows)

    shards: list[tuple[str, int, Shard]] = []
    for section in source.sections(lambda number: number % build.count == build.index):
        if isinstance(section, LinkedSection):
            _refuse_links_into(build.out, section)
            shards += [(split, section.number, shard) for split, shard in section.shards]
            count(sum(shard.rows for _, shard in section.shards))
            continue
        with ExitStack() as files:
            writers: dict[str, ShardWriter] = {}
            for split, chunk in section.chunks:
                if split not in writers:
                    writer = ShardWriter(build.folder, split, section.number, source.fields)
                    writers[split] = files.enter_context(closing(writer))
                writers[split].append(chunk)
                count(len(next(iter(chunk.values()))))
            shards += [(split, section.number, writer.finish()) for split, writer in writers.items()]
    return Part(source.fields, splits, source.num_rows(), shards)


def _refuse_links_into(out: Path, section: LinkedSection) -> None:
    """Refuse to link files of the dataset's own folder: replacing what is there would remove them."""
    for _, shard in section.shards:
        if Path(shard.file).is_relative_to(out.resolve()):
            raise DataError(
                f"{shard.file} lies in {out}, the folder of the dataset that would link to it. Move it elsewhere, "
                "choose another folder, or build without --link."
            )


def _key(described: Any) -> str:
    """Return what tells this build from others in the same folder."""
    return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:16]
