"""Folders of pictures, one folder a class."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hpcvol.data.images import decoded
from hpcvol.data.manifest import Field
from hpcvol.data.order import order
from hpcvol.data.partition import WINDOW_ROWS
from hpcvol.data.shard_writer import Chunk
from hpcvol.data.sources.extras import required
from hpcvol.data.sources.files import is_visible, signature_of
from hpcvol.data.sources.options import Options
from hpcvol.data.sources.rows import RowSource, Wanted
from hpcvol.data.sources.source import Source
from hpcvol.errors import DataError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff")


def images_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the pictures in the folders at `paths`, each of which holds a folder a class, of any depth.

    Field `image` is the file as it is, ragged uint8, to be decoded by the transform (`hpcvol.data.images`); `label` is
    int64, the number of the class in the order of the folders' names, which the manifest keeps. Pictures stand in the
    dataset in a random order, the same for the same names, so that neighbours are of different classes.

    Options: check ("decode": every picture is decoded once, so that no broken one is found while training; or "header",
    which only looks what it is, at a tenth of the time), and shard_nbytes.
    """
    required("PIL", "images")
    whole = options.text("check", "decode", among=("decode", "header")) == "decode"
    return RowSource(_ImageRows([Path(path) for path in paths], whole), shares, options)


class _ImageRows:
    def __init__(self, roots: Sequence[Path], whole: bool) -> None:
        self._whole = whole
        found = [place for root in roots for place in _pictures(root)]
        classes = sorted({name for name, _ in found})
        if not found:
            raise DataError(
                f"There are no pictures ({', '.join(_SUFFIXES)}) in {', '.join(map(str, roots))}; expected a "
                "folder a class."
            )
        numbers = {name: number for number, name in enumerate(classes)}
        shuffled = order(len(found), seed=0, epoch=0, position=0, count=len(found))
        self._files = [found[i][1] for i in shuffled]
        self._labels = np.array([numbers[found[i][0]] for i in shuffled], np.int64)
        self.signature = signature_of(self._files)
        self.num_rows = len(found)
        self.expected_rows: int | None = self.num_rows
        self.declared: Mapping[str, Field] = {
            "image": Field(np.dtype("u1"), (), ragged=True),
            "label": Field(np.dtype("<i8"), (), classes=tuple(classes)),
        }

    def windows(self, wanted: Wanted) -> Iterator[tuple[int, Chunk]]:
        for number, first in enumerate(range(0, self.num_rows, WINDOW_ROWS)):
            if wanted(number):
                files = self._files[first : first + WINDOW_ROWS]
                images = [_read(file, self._whole) for file in files]
                yield number, {"image": images, "label": self._labels[first : first + len(files)]}

    def where(self, row: int) -> str:
        return str(self._files[row])


def _pictures(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (class, file) for each picture under `root`, in the order of names."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}; expected one that holds a folder of pictures for each class.")
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        if file.suffix.lower() not in _SUFFIXES or not is_visible(name) or not file.is_file():
            continue
        if len(name.parts) == 1:
            raise DataError(
                f"{file} has no label: it lies beside the folders of the classes, not in one. Move it into the "
                "folder of its class, or take it away."
            )
        yield name.parts[0], file


def _read(file: Path, whole: bool) -> np.ndarray:
    data = np.frombuffer(file.read_bytes(), np.uint8)
    try:
        decoded(data, header_only=not whole)
    except ValueError as error:
        raise DataError(f"{file} is a broken picture: {error}. Replace it or take it away.") from error
    return data
