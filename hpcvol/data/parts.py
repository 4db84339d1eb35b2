"""How the parts of a build come together with nothing but a folder between them.

Each part works in `OUT/.building/KEY/part-I/` under a lock that dies with its process, and leaves a description when
its shards are complete. Whoever then finds all descriptions commits: moves the shards to `OUT`, and writes the manifest
last. Nothing in `.building` is ever read as a dataset, and builds of other input have another KEY.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hpcvol.data.manifest import (
    FILE_NAME,
    FORMAT,
    Field,
    Manifest,
    Shard,
    fields_from_json,
    fields_to_json,
    read_manifest,
)
from hpcvol.durable import sync, write_text
from hpcvol.errors import DataError

_STAGING = ".building"
_HEAD_NBYTES = 1 << 16


@dataclass(frozen=True)
class Part:
    """What one part wrote.

    Args:
        fields: of every sample.
        splits: names.
        num_rows: samples of the whole input, as this part saw it.
        shards: (split, number of the section, shard).
    """

    fields: Mapping[str, Field]
    splits: tuple[str, ...]
    num_rows: int
    shards: list[tuple[str, int, Shard]]

    @property
    def facts(self) -> tuple[Any, ...]:
        """What all parts of a build must agree on."""
        return fields_to_json(self.fields), self.splits, self.num_rows

    def to_json(self) -> str:
        """Return the text of the description."""
        shards = [(split, number, asdict(shard)) for split, number, shard in self.shards]
        return json.dumps([fields_to_json(self.fields), self.splits, self.num_rows, shards])

    @classmethod
    def from_json(cls, text: str) -> "Part":
        """Return the part that `text` describes."""
        fields, splits, num_rows, shards = json.loads(text)
        rows = [(split, number, Shard(**shard)) for split, number, shard in shards]
        return cls(fields_from_json(fields), tuple(splits), num_rows, rows)


class PartBuild:
    """One part of a build, from its lock to the commit. A context manager.

    Args:
        out: folder of the dataset.
        key: the same for all parts of a build, different for other input.
        index: of this part.
        count: of the parts.
        recipe: what the manifest tells people of how the dataset was built.
        overwrite: whether a dataset in `out` may be replaced.

    Attributes:
        folder: where this part writes its shards.
        already_done: True where the other parts have committed already what this one would build.

    Raises:
        DataError: `out` is taken, or another process builds there.
    """

    def __init__(
        self, out: Path, key: str, index: int, count: int, recipe: Mapping[str, Any], *, overwrite: bool
    ) -> None:
        self.out = out
        self.key = key
        self.index = index
        self.count = count
        self.already_done = False
        self._recipe = recipe
        self._overwrite = overwrite
        self._staging = out / _STAGING / key
        self.folder = self._staging / f"part-{index}"
        self._lock = -1

    def __enter__(self) -> "PartBuild":
        self._refuse_other_things()
        with self._one_at_a_time():
            self.already_done = self._refuse_taken()
            if not self.already_done:
                self._begin()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._lock >= 0:
            os.close(self._lock)

    def _begin(self) -> None:
        self._staging.mkdir(exist_ok=True)
        self._remove_stale_builds()
        self._lock = _lock(self._lock_file(self.index), wait=False)
        if self._lock < 0:
            raise DataError(
                f"Another process is building part {self.index} of {self.count} of {self.out}. Wait for it; where "
                "many processes build one dataset, give each its own part."
            )
        # What a killed process left of this very part; the description first, so that nobody counts on the rest.
        self._description(self.index).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def finish(self, part: Part) -> None:
        """Describe this part as complete, and commit the dataset if all others are."""
        write_text(self._description(self.index), part.to_json(), aside=self.folder / "description")
        with self._one_at_a_time():
            # Gone: another part found all complete a moment ago, and has committed.
            if self._staging.exists() and all(self._description(i).exists() for i in range(self.count)):
                self._commit([Part.from_json(self._description(i).read_text()) for i in range(self.count)])

    def _commit(self, parts: list[Part]) -> None:
        manifest = _merge(parts, self.key, self._recipe, self.out)
        for index, part in enumerate(parts):
            for _split, _number, shard in part.shards:
                if shard.modified_ns:  # linked: it stays where it is
                    continue
                source, target = self._staging / f"part-{index}" / shard.file, self.out / shard.file
                # A commit that was killed half-way has moved some already.
                if source.exists() or not target.exists():
                    os.replace(source, target)
        sync(self.out)
        write_text(self.out / FILE_NAME, manifest.to_json(), aside=self._staging / FILE_NAME)
        _remove_unlisted(self.out, manifest)
        shutil.rmtree(self.out / _STAGING, ignore_errors=True)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Hold the lock under which parts begin and commit, so that no part begins while another commits."""
        staging = self.out / _STAGING
        lock = -1
        while lock < 0:
            staging.mkdir(parents=True, exist_ok=True)
            lock = _lock(staging / "lock", wait=True)
        try:
            yield
        finally:
            if all(path.name == "lock" for path in staging.glob("*")):  # no build here, or none any more
                shutil.rmtree(staging, ignore_errors=True)
            os.close(lock)

    def _refuse_other_things(self) -> None:
        if os.path.lexists(self.out / FILE_NAME) and not _says_that_it_is_ours(self.out / FILE_NAME):
            raise DataError(
                f'{self.out / FILE_NAME} is not hpcvol\'s: it lacks "format": "{FORMAT}". Choose another folder for '
                "the dataset; where this was one, remove that file first."
            )
        ours = (self.out / FILE_NAME).exists() or (self.out / _STAGING).exists() or not self.out.exists()
        if not ours and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise DataError(f"{self.out} exists and is not an empty folder; choose a new one for the dataset.")

    def _refuse_taken(self) -> bool:
        """Return whether the dataset is there already by the work of this build's other parts."""
        if (self.out / FILE_NAME).exists():
            if self.count > 1 and _build_of(self.out) == self.key:
                return True
            if not self._overwrite:
                raise DataError(
                    f"{self.out} holds a dataset already. Choose another folder, or replace it with --overwrite "
                    "(overwrite=True)."
                )
        return False

    def _remove_stale_builds(self) -> None:
        for staging in (self.out / _STAGING).iterdir():
            if staging.is_dir() and staging.name != self.key:
                for lock_file in staging.glob("*.lock"):
                    lock = _lock(lock_file, wait=False)
                    if lock < 0:
                        raise DataError(
                            f"Another build, of other input or options, is at work in {self.out}. Wait for it, or "
                            "choose another folder."
                        )
                    os.close(lock)
                shutil.rmtree(staging, ignore_errors=True)

    def _lock_file(self, index: int) -> Path:
        return self._staging / f"part-{index}.lock"

    def _description(self, index: int) -> Path:
        return self._staging / f"part-{index}.json"


def _merge(parts: list[Part], key: str, recipe: Mapping[str, Any], out: Path) -> Manifest:
    for index, part in enumerate(parts):
        if part.facts != parts[0].facts:
            raise DataError(
                f"Parts 0 and {index} of {out} saw different input: {parts[0].facts} and {part.facts}. All parts need "
                f"the same files and options; remove {out / _STAGING} and build again."
            )
    splits: dict[str, list[tuple[int, Shard]]] = {split: [] for split in parts[0].splits}
    for part in parts:
        for split, number, shard in part.shards:
            splits[split].append((number, shard))
    ordered = {split: tuple(shard for _, shard in sorted(shards, key=_by_number)) for split, shards in splits.items()}
    manifest = Manifest(parts[0].fields, ordered, key, recipe)
    found = sum(manifest.rows(split) for split in ordered)
    if found == 0:
        raise DataError(f"The input of {out} makes no samples: it is empty, or shorter than one sample.")
    if found != parts[0].num_rows:
        raise DataError(
            f"The parts of {out} hold {found} samples, the input has {parts[0].num_rows}: it changed while it was "
            f"read. Remove {out / _STAGING} and build again."
        )
    return manifest


def _by_number(numbered: tuple[int, Shard]) -> int:
    return numbered[0]


def _says_that_it_is_ours(manifest: Path) -> bool:
    """Return whether a file, intact or not, begins as manifests do."""
    try:
        with manifest.open("rb") as file:
            head = file.read(_HEAD_NBYTES)
    except OSError:
        return False
    return re.search(rb'"format"\s*:\s*"%b"' % FORMAT.encode(), head) is not None


def _build_of(out: Path) -> str | None:
    try:
        return read_manifest(out).build
    except DataError:
        return None


def _remove_unlisted(out: Path, manifest: Manifest) -> None:
    """Remove shards of a dataset that was replaced, or of a commit that was killed."""
    listed = {(out / shard.file).resolve() for shards in manifest.splits.values() for shard in shards}
    for path in out.iterdir():
        if re.fullmatch(r"[A-Za-z0-9_]+-\d{5,}-[0-9a-f]{8}\.h5", path.name) and path.resolve() not in listed:
            path.unlink()


def _lock(path: Path, *, wait: bool) -> int:
    """Return a descriptor that holds the lock `path` until it is closed or the process dies; -1 if there is none.

    There is none where another process holds it (and `wait` is false), or where the file was removed while we waited:
    a lock on a file that nobody else can find excludes nobody.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return -1
