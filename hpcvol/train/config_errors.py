"""Turns what pydantic found wrong with a configuration into words: found what, where, expected what, do what."""

import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hpcvol.train.toml import value_text

Key = tuple[str, ...]

_TYPE_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
}


def explain(error: ValidationError, model: type[BaseModel], text: str, path: Path, overrides: Sequence[str]) -> str:
    """Return one message for all that is wrong, a line for each key.

    Args:
        error: what validating a `model` raised.
        model: the configuration class; nearest keys are looked for in it.
        text: the file's text, to name lines.
        path: the file's path, to name it.
        overrides: the `--set` arguments, which are named instead of a line where a key came from there.
    """
    known = dict(_keys(model))
    found: dict[Key, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        if details["type"] == "default_factory_not_called":  # follows from another error of the section
            continue
        found.setdefault(_known_part(details, known), []).append(details)
    return "\n".join(
        f"{_where(key, text, path, overrides)}: {_what(key, details, known)}" for key, details in found.items()
    )


def _keys(model: type[BaseModel], prefix: Key = ()) -> Iterator[tuple[Key, bool]]:
    """Yield each key below `model` and whether it is a section with fixed keys of its own."""
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        yield (*prefix, name), section is not None
        if section is not None:
            yield from _keys(section, (*prefix, name))


def _section(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _known_part(details: ErrorDetails, known: dict[Key, bool]) -> Key:
    """Return the key that an error is about, without pydantic's names for the branches of a union below it."""
    location = tuple(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return location
    while location and location not in known:
        location = location[:-1]
    return location


def _what(key: Key, details: list[ErrorDetails], known: dict[Key, bool]) -> str:
    first = details[0]
    name = ".".join(key)
    match first["type"]:
        case "extra_forbidden":
            return f"unknown {'key' if len(key) > 1 else 'section'} {_show(key)}. {_nearest(key, known)}"
        case "missing":
            return f"{_show(key)} is missing and has no default"
        case "value_error":
            return first["msg"].removeprefix("Value error, ")
    expected = " or ".join(dict.fromkeys(_expected(item) for item in details))
    inside = tuple(str(part) for part in first["loc"])[len(key) :]
    of = f" (in {'.'.join(inside)})" if inside and len(details) == 1 else ""
    return f"{name} = {_found(first['input'])}{of}, expected {expected}"


def _expected(details: ErrorDetails) -> str:
    words = details["msg"].removeprefix("Input should be ")
    return words.replace("a valid dictionary", "a table").replace("a valid ", "a ").replace("a integer", "an integer")


def _show(key: Key) -> str:
    return f"[{key[0]}]" if len(key) == 1 else f"{key[-1]!r} in [{'.'.join(key[:-1])}]"


def _found(value: Any) -> str:
    kind = _TYPE_NAMES.get(type(value))
    return f"{value_text(value)} ({kind})" if kind else str(value)


def _nearest(key: Key, known: dict[Key, bool]) -> str:
    """Name the key nearest to an unknown one: of its own section first, then the same word in another section."""
    siblings = [other[-1] for other in known if other[:-1] == key[:-1]]
    if near := difflib.get_close_matches(key[-1], siblings, n=1):
        return f"Did you mean {near[0]!r}?"
    elsewhere = {".".join(other): other[-1] for other in known if other[:-1] != key[:-1]}
    if near := difflib.get_close_matches(key[-1], list(elsewhere.values()), n=1, cutoff=0.8):
        return f"Did you mean {next(full for full, last in elsewhere.items() if last == near[0])}?"
    return f"There is: {', '.join(siblings)}"


def _where(key: Key, text: str, path: Path, overrides: Sequence[str]) -> str:
    for override in overrides:
        name = tuple(override.partition("=")[0].strip().split("."))
        if name[: len(key)] == key or key[: len(name)] == name:
            return f"--set {override}"
    line = _line(key, text)
    return f"{path}, line {line}" if line else str(path)


def _line(key: Key, text: str) -> int | None:
    """Return the line on which `key` stands (from 1), None where a plain scan does not see it."""
    section: Key = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            section = tuple(header[1].split("."))
            if section == key:
                return number
        elif (entry := re.match(r"\s*([\w.-]+)\s*=", line)) and (*section, *entry[1].split(".")) == key:
            return number
    return None
