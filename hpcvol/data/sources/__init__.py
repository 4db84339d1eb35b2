"""What datasets are built from: one file a kind of input."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpcvol.data.sources.options import Options, nearest
from hpcvol.data.sources.source import LinkedSection, Section, Source
from hpcvol.errors import ConfigError

__all__ = ["KINDS", "LinkedSection", "Section", "Source", "open_source"]

# Each has a module of its name here, with a function KIND_source; loaded when asked for, since some need much.
KINDS = ("text", "tokens", "npz", "csv", "python", "images", "hdf5", "parquet", "webdataset")


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
    module = importlib.import_module(f"hpcvol.data.sources.{kind}")
    make: Callable[[Sequence[str], Mapping[str, float], Options], Source] = getattr(module, f"{kind}_source")
    source = make(paths, shares, checked)
    checked.refuse_unused()
    return source
