"""What every kind of input offers to the builder."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from hpcvol.data.manifest import Field, Shard
from hpcvol.data.shard_writer import Chunk
from hpcvol.data.sources.options import Options

DEFAULT_SHARD_NBYTES = 1 << 28


@dataclass(frozen=True)
class Section:
    """A part of the input that becomes one shard for each split that it has samples of.

    Args:
        number: from 0; samples stand in the dataset in the order of the sections.
        chunks: (split, samples), to be read once.
    """

    number: int
    chunks: Iterator[tuple[str, Chunk]]


@dataclass(frozen=True)
class LinkedSection:
    """A part of the input that stays where it is.

    Args:
        number: from 0, as that of a `Section`.
        shards: (split, what the manifest says of the file).
    """

    number: int
    shards: list[tuple[str, Shard]]


class Source(Protocol):
    """An input, cut into sections.

    The cut follows from the input and the options alone. The parts of a build share out whole sections, which is why
    the dataset is the same however many parts build it.

    Attributes:
        fields: of every sample.
        signature: changes where the input changes, as far as can be told without reading it (names, sizes, times).
        expected_rows: samples of the whole input where that is known before it is read, else None.
    """

    fields: Mapping[str, Field]
    signature: str
    expected_rows: int | None

    def sections(self, wanted: Callable[[int], bool]) -> Iterator[Section | LinkedSection]:
        """Yield the sections whose numbers are `wanted`; each is to be read before the next is asked for."""

    def num_rows(self) -> int:
        """Return how many samples the whole input has; call it after `sections` is exhausted."""


def shard_nbytes(options: Options) -> int:
    """Return how large a section, and so the shards made of it, is to be: option shard_nbytes, 256 MiB by default."""
    return options.integer("shard_nbytes", DEFAULT_SHARD_NBYTES, least=1)
