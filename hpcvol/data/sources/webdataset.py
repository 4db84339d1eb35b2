"""Tar files of samples, as WebDataset reads them: files of the same name but for the extension belong together."""

import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from lzma import LZMAError
from pathlib import Path

import numpy as np

from hpcvol.data.manifest import Field
from hpcvol.data.partition import WINDOW_ROWS
from hpcvol.data.shard_writer import Array, Chunk
from hpcvol.data.sources.files import find_files, signature_of
from hpcvol.data.sources.options import Options
from hpcvol.data.sources.rows import RowSource, Wanted
from hpcvol.data.sources.source import Source
from hpcvol.errors import DataError

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff"})
_BYTES = Field(np.dtype("u1"), (), ragged=True)
_INTEGER = Field(np.dtype("<i8"), ())


def webdataset_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the samples of the tar files at `paths`, read in sequence.

    A sample is what stands together in a tar under the same name up to the first dot; each extension becomes a field:
    pictures `image` (bytes, as they are), `.cls` `label` (int64), `.id` and `.index` int64, `.npy` its array, `.json` a
    number or list of numbers, else bytes, and everything else bytes (ragged uint8); dots in an extension become
    underscores. Of parts of a build that are not one's own only the headers are read, where the tar is not compressed.

    Options: those of `RowSource`.
    """
    return RowSource(_TarRows(find_files(paths, _SUFFIXES, "a tar file of samples")), shares, options)


class _TarRows:
    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.signature = signature_of(paths)
        self.expected_rows: int | None = None
        self.num_rows = 0
        self.declared: Mapping[str, Field] = {}
        self._names: set[str] = set()
        self._places: list[str] = []

    def windows(self, wanted: Wanted) -> Iterator[tuple[int, Chunk]]:
        places: list[str] = []
        columns: dict[str, list[Array]] = {}
        for path in self._paths:
            for key, members in self._samples(path, lambda: wanted(self.num_rows // WINDOW_ROWS)):
                number = self.num_rows // WINDOW_ROWS
                place = f"{path}, sample {key!r}"
                self._check(place, members)
                self.num_rows += 1
                if None not in members.values():
                    places.append(place)
                    for name, data in members.items():
                        columns.setdefault(_field_name(name), []).append(_value(name, data or b"", place))
                if self.num_rows % WINDOW_ROWS == 0 and columns:
                    self._places = places
                    yield number, columns
                    places, columns = [], {}
        if columns:
            self._places = places
            yield self.num_rows // WINDOW_ROWS, columns

    def where(self, row: int) -> str:
        return self._places[row % WINDOW_ROWS] if self._places else str(self._paths[0])

    def _samples(self, path: Path, wanted: Callable[[], bool]) -> Iterator[tuple[str, dict[str, bytes | None]]]:
        """Yield key and contents by extension of each sample; contents are None where the sample is not wanted."""
        key, members = "", dict[str, bytes | None]()
        for name, extension, read in _members(path):
            if name != key:
                if members:
                    yield key, members
                key, members = name, {}
            if extension in members:
                raise DataError(
                    f"{path}: sample {key!r} has two files .{extension}. Give each sample a name of its own."
                )
            members[extension] = read() if wanted() else None
        if members:
            yield key, members

    def _check(self, place: str, members: Mapping[str, bytes | None]) -> None:
        names = {_field_name(extension) for extension in members}
        if not self._names:
            self._names = names
            self.declared = _declare(members)
        if len(names) != len(members):
            raise DataError(f"{place} has two pictures, of the files {_dotted(members)}. Name one such as .mask.png.")
        if names != self._names:
            raise DataError(
                f"{place} has the files {_dotted(members)}; the first sample has the "
                f"fields {', '.join(sorted(self._names))}. Every sample needs the same: add what it lacks or leave the "
                "sample out."
            )


def _members(path: Path) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """Yield (name up to the first dot, extension, function that returns the contents) of the files in a tar."""
    try:
        with tarfile.open(path) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                folder, slash, file = member.name.rpartition("/")
                stem, dot, extension = file.partition(".")
                if member.isfile() and stem and dot and not stem.startswith("__"):
                    yield folder + slash + stem, extension, partial(_contents, tar, member)
            _refuse_cut(tar)
    except (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError) as error:
        raise DataError(
            f"{path} cannot be read as a tar file: {error}. Copy it again from where it is intact."
        ) from error


def _contents(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # it is one of a regular file
    return file.read()


def _refuse_cut(tar: tarfile.TarFile) -> None:
    """Tarfile takes a file that was cut between two members for a whole one."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends without an end mark, it was cut short")


def _field_name(extension: str) -> str:
    lower = extension.lower()
    return "image" if lower in IMAGES else "label" if lower == "cls" else extension.replace(".", "_")


def _declare(members: Mapping[str, bytes | None]) -> dict[str, Field]:
    """Return the fields that follow from extensions alone; those of arrays follow from the first rows."""
    fields: dict[str, Field] = {}
    for extension, data in members.items():
        kind = _kind(extension)
        if kind in ("cls", "id", "index"):
            fields[_field_name(extension)] = _INTEGER
        elif kind != "npy" and not (kind == "json" and data and _numbers(data) is not None):
            fields[_field_name(extension)] = _BYTES
    return fields


def _kind(extension: str) -> str:
    return extension.rpartition(".")[2].lower()


def _dotted(members: Mapping[str, bytes | None]) -> str:
    return ", ".join(f".{extension}" for extension in sorted(members))


def _value(extension: str, data: bytes, place: str) -> Array:
    kind = _kind(extension)
    try:
        if kind in ("cls", "id", "index"):
            return np.array(int(data), np.int64)
        if kind == "npy":
            return np.asarray(np.load(BytesIO(data), allow_pickle=False))
        if kind == "json" and (numbers := _numbers(data)) is not None:
            return numbers
    except (ValueError, OverflowError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{place}: .{extension} cannot be read: {error}. Correct it or leave the sample out."
        ) from error
    return np.frombuffer(data, np.uint8)


def _numbers(text: bytes) -> Array | None:
    """Return the numbers of a JSON text, None where it is something else."""
    try:
        array = np.asarray(json.loads(text))
    except (ValueError, RecursionError):
        return None
    return array if array.dtype.kind in "biuf" and array.size else None
