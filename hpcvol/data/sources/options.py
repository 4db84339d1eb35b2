"""Options of a build, as given on the command line (text) or in Python."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from hpcvol.errors import ConfigError


class Options:
    """The options of one build; every one has to be asked for by the source, or it is refused as unknown.

    A value from the command line is text as it was typed: only whoever asks knows whether `03` is a number or a name.
    """

    def __init__(self, kind: str, given: Mapping[str, Any]) -> None:
        self._kind = kind
        self._given = given
        self._known: set[str] = set()

    def integer(self, name: str, default: int, least: int) -> int:
        """Return option `name`, an integer of at least `least`; `1e6` is one too."""
        value = self.value(name, default)
        number = _integer(value)
        if number is None:
            raise ConfigError(f"Option {name} of kind {self._kind} is {value!r}, expected an integer.")
        if number < least:
            raise ConfigError(f"Option {name} of kind {self._kind} is {number}, expected at least {least}.")
        return number

    def text(self, name: str, default: str, among: Iterable[str] = ()) -> str:
        """Return option `name`, a text; one of `among` where that is given."""
        value = self.value(name, default)
        if isinstance(value, int) and not isinstance(value, bool):  # a configuration's `label = 3`
            value = str(value)
        allowed = list(among)
        if not isinstance(value, str) or (allowed and value not in allowed):
            expected = " or ".join(allowed) or "a text"
            raise ConfigError(f"Option {name} of kind {self._kind} is {value!r}, expected {expected}.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return option `name`, true or false."""
        value = self.value(name, default)
        value = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise ConfigError(f"Option {name} of kind {self._kind} is {value!r}, expected true or false.")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """Return option `name`, names separated by commas or a list of them; none by default.

        A list may be text, `["a,b", "c"]`, and a name of digits alone an integer, as a configuration's `columns = 3`.
        """
        value = self.value(name, ())
        if isinstance(value, str):
            value = _list(value)
        parts = value if isinstance(value, list | tuple) else [value]
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


def _integer(value: Any) -> int | None:
    """Return the integer that a value is, None where it is none."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    with suppress(ValueError, TypeError):
        if isinstance(value, str):
            return int(value)
    with suppress(ValueError, TypeError):
        number = float(value)
        return int(number) if number.is_integer() else None
    return None


def _list(text: str) -> list[Any]:
    """Return the list that a text is in TOML, or else its parts between commas."""
    try:
        value = tomllib.loads(f"value = {text}")["value"] if text.startswith("[") else None
    except tomllib.TOMLDecodeError:
        value = None
    return value if isinstance(value, list) else text.split(",")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" where one of `known` is near to `name`, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""
