"""NumPy's .npz files: arrays of equal first dimension become fields."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from hpcvol.data.shard_writer import Chunk
from hpcvol.data.sources.options import Options
from hpcvol.data.sources.rows import RowSource, Wanted, rewindow
from hpcvol.data.sources.source import Source
from hpcvol.errors import DataError


def npz_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the rows of the .npz files at `paths`, one file after the other; one at a time is in memory.

    Options: those of `RowSource`.
    """
    return RowSource(_NpzRows([Path(path) for path in paths]), shares, options)


class _NpzRows:
    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        for path in paths:
            if not path.is_file():
                raise DataError(f"There is no file {path}; expected a .npz file of NumPy.")
        stats = [path.stat() for path in paths]
        self.signature = repr([(p.name, s.st_size, s.st_mtime_ns) for p, s in zip(paths, stats, strict=True)])
        self.num_rows = 0
        self._starts: list[int] = []

    def windows(self, wanted: Wanted) -> Iterator[tuple[int, Chunk]]:
        return rewindow(self._files(), wanted)

    def where(self, row: int) -> str:
        file = max((i for i, start in enumerate(self._starts) if start <= row), default=0)
        return f"{self._paths[file]}, row {row - (self._starts[file] if self._starts else 0)}"

    def _files(self) -> Iterator[Chunk]:
        names: set[str] = set()
        for path in self._paths:
            arrays = _load(path)
            if names and set(arrays) != names:
                raise DataError(
                    f"{path} has the arrays {', '.join(sorted(arrays))}; {self._paths[0]} has "
                    f"{', '.join(sorted(names))}. All files of a build need the same."
                )
            names = set(arrays)
            self._starts.append(self.num_rows)
            self.num_rows += len(next(iter(arrays.values())))
            yield arrays


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise DataError(f"{path} cannot be read as a .npz file of numbers: {error}.") from error
    if not arrays:
        raise DataError(f"{path} holds no arrays.")
    lengths = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise DataError(
            f"{path}: the arrays have {lengths} rows (first dimension); expected the same number in each. "
            "Leave arrays that are not samples out of the file."
        )
    return arrays
