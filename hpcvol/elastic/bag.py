"""The bag of a step's units that one worker still has to compute."""

from collections import deque
from collections.abc import Iterable, Iterator

from hpcvol.elastic.units import UnitSpan


class Bag:
    """Units to compute; iteration takes them out until none is left, those put back while it runs included."""

    def __init__(self, spans: Iterable[UnitSpan]) -> None:
        self._spans = deque(spans)

    def put(self, spans: Iterable[UnitSpan]) -> None:
        """Put units (back) into the bag."""
        self._spans.extend(spans)

    def __bool__(self) -> bool:
        return bool(self._spans)

    def __iter__(self) -> Iterator[UnitSpan]:
        while self._spans:
            yield self._spans.popleft()
