"""Options of a build, as given on the command line (text) or in Python."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from hpcvol.errors import ConfigError


class Options:
    """The options of one build; every one has to be asked for by the source, or it is refused as unknown."""

    def __init__(self, kind: str, given: Mapping[str, Any]) -> None:
        self._kind = kind
        self._given = given
        self._known: set[str] = set()

    def integer(self, name: str, default: int, least: int) -> int:
        """Return option `name`, an integer of at least `least`."""
        value = self.value(name, default)
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise ConfigError(f"Option {name} of kind {self._kind} is {value!r}, expected an integer.") from None
        if number < least:
            raise ConfigError(f"Option {name} of kind {self._kind} is {number}, expected at least {least}.")
        return number

    def text(self, name: str, default: str, among: Iterable[str] = ()) -> str:
        """Return option `name`, a text; one of `among` where that is given."""
        value = str(self.value(name, default))
        allowed = list(among)
        if allowed and value not in allowed:
            raise ConfigError(f"Option {name} of kind {self._kind} is {value!r}, expected {' or '.join(allowed)}.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return option `name`, true or false."""
        value = self.value(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"Option {name} of kind {self._kind} is {value!r}, expected true or false.")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """Return option `name`, names separated by commas or a list of them; none by default.

        A name of digits alone may come as an integer: the command line reads `columns=3` so.
        """
        value = self.value(name, ())
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts):
            raise ConfigError(
                f"Option {name} of kind {self._kind} is {value!r}, expected names, separated by commas or in a list."
            )
        return tuple(str(part).strip() for part in parts)

    def value(self, name: str, default: Any) -> Any:
        """Return option `name` as it was given."""
        self._known.add(name)
        return self._given.get(name, default)

    def refuse_unused(self) -> None:
        """Raise ConfigError where an option was given that nobody asked for."""
        for name in self._given:
            if name not in self._known:
                raise ConfigError(
                    f"Kind {self._kind} has no option {name!r}; it has {', '.join(sorted(self._known))}."
                    f"{nearest(name, self._known)}"
                )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" where one of `known` is near to `name`, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""
