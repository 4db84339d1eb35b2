"""TOML as configurations need it: read with clear errors, overridden from the command line, written out."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcvol.errors import ConfigError

Table = dict[str, Any]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read(path: Path) -> str:
    """Return the text of the configuration file `path`.

    Raises:
        ConfigError: no such file, or it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {path}: `hpcvol new DIR` makes a project with one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from None


def parse(text: str, path: Path) -> Table:
    """Return the tables of `text`; `path` is named in the error.

    Raises:
        ConfigError: not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", everywhere=True) from None


def apply_overrides(table: Table, overrides: Sequence[str], exclusive: Sequence[tuple[str, str]] = ()) -> None:
    """Write `section.key=value` overrides into `table`, in place.

    Args:
        table: the parsed configuration.
        overrides: the value after the first `=` is TOML; what is not valid TOML is taken as a string.
        exclusive: pairs of keys of which an override of one removes the other, unless that is overridden too.

    Raises:
        ConfigError: no `=`, or a key below something that is no table.
    """
    pairs = [_split_override(override) for override in overrides]
    given = {key for key, _ in pairs}
    for one, other in exclusive:
        for key, rival in ((one, other), (other, one)):
            if key in given and rival not in given:
                _remove(table, rival)
    for key, value in pairs:
        _assign(table, key, value)


def _split_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")) or "." not in key:
        raise ConfigError(
            f"--set {override!r}: expected section.key=value, for example --set train.steps=100", everywhere=True
        )
    return key, value_of(text.strip())


def value_of(text: str) -> Any:
    """Return the TOML value that `text` is, and `text` itself where it is none: `3` is a number, `fast` a string."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _remove(table: Table, key: str) -> None:
    section, _, name = key.partition(".")
    if isinstance(table.get(section), dict):
        table[section].pop(name, None)


def _assign(table: Table, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    place = table
    for depth, section in enumerate(sections):
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError(
                f"--set {key}: {'.'.join(sections[: depth + 1])} is a value and has no keys below it", everywhere=True
            )
    place[name] = value


def render(table: Mapping[str, Any]) -> str:
    """Return `table` as TOML text: one `[section]` a table, deeper tables inline."""
    lines = []
    for section, keys in table.items():
        lines.append(f"[{key_text(section)}]")
        lines += [f"{key_text(key)} = {value_text(value)}" for key, value in keys.items()]
        lines.append("")
    return "\n".join(lines)


def key_text(key: str) -> str:
    """Return `key` as TOML, in quotes where it needs them."""
    return key if _BARE_KEY.fullmatch(key) else value_text(key)


def value_text(value: Any) -> str:
    """Return one value as TOML (None, which TOML has not, as `none`)."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            inner = ", ".join(f"{key_text(key)} = {value_text(item)}" for key, item in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return f"[{', '.join(value_text(item) for item in value)}]"
        case int() | float():
            return repr(value)
        case _:  # dates and times, which print as TOML writes them
            return value.isoformat() if hasattr(value, "isoformat") else str(value)


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested tables by dotted key: `{"train": {"steps": 3}}` gives `{"train.steps": 3}`.

    An empty table has no leaves.
    """
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
