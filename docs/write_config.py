"""Writes config.md, the reference of all configuration keys, from the configuration model: `make docs`."""

import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hpcvol.train.config import Config
from hpcvol.train.toml import value_text

PAGE = Path(__file__).with_name("config.md")

HEAD = """\
# Configuration

<!-- Written from hpcvol/train/config.py by `make docs`; change it there. -->

A configuration is a TOML file. Paths are relative to the folder it is in. `file.py:function` names a function in a
file. Any key can be replaced on the command line: `hpcvol train job.toml --set train.steps=100`. An unknown key is an
error.
"""

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): ""}


def page() -> str:
    """Return the whole page."""
    sections = [_section(name, _model_of(field)) for name, field in Config.model_fields.items()]
    return "\n".join([HEAD, *sections])


def _section(name: str, model: type[BaseModel]) -> str:
    lines = [f"## [{name}]", "", model.__doc__ or "", "", "| key | type | default | |", "|---|---|---|---|"]
    nested = []
    for key, field in model.model_fields.items():
        lines.append(f"| `{key}` | {_type_of(field.annotation)} | {_default(field)} | {field.description} |")
        if _has_model(field):
            nested.append(_section(f"{name}.{key}", _model_of(field)))
    return "\n".join([*lines, "", *nested])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "derived"
    if isinstance(field.default, BaseModel):
        return "as below"
    return "none" if field.default is None else f"`{value_text(field.default)}`"


def _type_of(annotation: Any) -> str:
    """Return a type in words: `int | Literal["auto"]` is `integer or "auto"`."""
    if annotation in _TYPES:
        return _TYPES[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if origin is list:
        return f"list of {_type_of(arguments[0])}s"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "table"
    if origin is typing.Annotated:
        return _type_of(arguments[0])
    return " or ".join(filter(None, (_type_of(argument) for argument in arguments)))


def _has_model(field: FieldInfo) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in _kinds(field))


def _model_of(field: FieldInfo) -> type[BaseModel]:
    return next(kind for kind in _kinds(field) if isinstance(kind, type) and issubclass(kind, BaseModel))


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    return (field.annotation, *typing.get_args(field.annotation))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
