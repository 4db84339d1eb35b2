"""Text as byte tokens in sequences of fixed length."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hpcvol.callables import load_callable
from hpcvol.data.sources.files import is_visible, unused_name
from hpcvol.data.sources.options import Options
from hpcvol.data.sources.sequences import SequenceSource
from hpcvol.data.sources.source import Source, shard_nbytes
from hpcvol.errors import ConfigError, DataError


def text_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the text at `paths`: files, folders, or `file.py:function` that returns a list of them.

    See `SequenceSource` for which byte goes to which split and sequence; documents stand in the order of their names.

    Options: sequence_length (257: 256 inputs and, one further on, 256 targets); pattern ("*", of the files taken from
    folders, at any depth, without hidden ones); shard_nbytes.
    """
    length = options.integer("sequence_length", 257, least=1)
    documents = _documents(paths, options.text("pattern", "*"))
    return SequenceSource(documents, np.dtype("u1"), shares, length, shard_nbytes(options))


def _documents(paths: Sequence[str], pattern: str) -> dict[str, Path]:
    """Return the files by name: the path within the folder it was found in, which is the same on any machine."""
    documents: dict[str, Path] = {}
    for path in _expand(paths):
        if path.is_dir():
            files = {file.relative_to(path): file for file in path.rglob(pattern) if file.is_file()}
            found = {name.as_posix(): file for name, file in files.items() if is_visible(name)}
        elif path.is_file():
            found = {path.name: path}
        else:
            raise DataError(f"There is no file or folder {path} to take text from.")
        for name in sorted(found):
            documents[unused_name(name, documents)] = found[name]
    if not documents:
        raise DataError(f"No files match {pattern!r} in {', '.join(map(str, paths))}; check the path or the pattern.")
    return documents


def _expand(paths: Sequence[str]) -> Iterator[Path]:
    for path in paths:
        if ".py:" not in path:
            yield Path(path)
            continue
        listed = load_callable(path, Path())()
        if isinstance(listed, str | bytes | os.PathLike) or not isinstance(listed, Sequence):
            raise ConfigError(f"{path} returned a {type(listed).__name__}, expected a list of paths.")
        yield from (Path(entry) for entry in listed)
