"""Inputs whose files say which split they are for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from hpcvol.data.manifest import Field, fields_in_words
from hpcvol.data.sources.source import LinkedSection, Section, Source
from hpcvol.errors import DataError


class AssignedSources:
    """A source a split, as one.

    Args:
        sources: by split; the samples of each all go to that split.

    Raises:
        DataError: they have other fields, or other classes.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = list(sources.values())
        self.signature = repr({split: source.signature for split, source in sources.items()})
        first_split, first = next(iter(sources.items()))
        self.fields: Mapping[str, Field] = first.fields
        for split, source in sources.items():
            if source.fields != first.fields:
                raise DataError(
                    f"The input of split {split} has {fields_in_words(source.fields)}; that of {first_split} has "
                    f"{fields_in_words(first.fields)}. The splits of a dataset need the same."
                )
        counts = [source.expected_rows for source in self._sources]
        self.expected_rows = None if None in counts else sum(count or 0 for count in counts)

    def num_rows(self) -> int:
        """Return the number of samples."""
        return sum(source.num_rows() for source in self._sources)

    def sections(self, wanted: Callable[[int], bool]) -> Iterator[Section | LinkedSection]:
        """Yield the wanted sections; section n of source i has the number n * sources + i."""
        count = len(self._sources)
        for index, source in enumerate(self._sources):
            for section in source.sections(lambda number, index=index: wanted(number * count + index)):  # type: ignore[misc]
                yield replace(section, number=section.number * count + index)
