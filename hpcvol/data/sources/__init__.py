"""What datasets are built from: one file a kind of input."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpcvol.data.sources.csv import csv_source
from hpcvol.data.sources.npz import npz_source
from hpcvol.data.sources.options import Options, nearest
from hpcvol.data.sources.python import python_source
from hpcvol.data.sources.source import Section, Source
from hpcvol.data.sources.text import text_source
from hpcvol.errors import ConfigError

__all__ = ["KINDS", "Section", "Source", "open_source"]

KINDS: dict[str, Callable[[Sequence[str], Mapping[str, float], Options], Source]] = {
    "text": text_source,
    "npz": npz_source,
    "csv": csv_source,
    "python": python_source,
}


def open_source(kind: str, paths: Sequence[str], shares: Mapping[str, float], options: Mapping[str, Any]) -> Source:
    """Return the input of `kind` at `paths`.

    Raises:
        ConfigError: unknown kind or option, or an option's value cannot be.
        DataError: the input is missing or cannot be used.
    """
    if kind not in KINDS:
        raise ConfigError(f"There is no kind of input {kind!r}; there are {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    if not paths:
        raise ConfigError(f"Kind {kind} needs at least one path.")
    checked = Options(kind, options)
    source = KINDS[kind](paths, shares, checked)
    checked.refuse_unused()
    return source
