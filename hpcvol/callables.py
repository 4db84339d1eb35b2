"""Functions named by text: `file.py:function` or `package.module:function`."""

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hpcvol.errors import ConfigError


def load_callable(spec: str, base: Path) -> Callable[..., Any]:
    """Return the function that `spec` names.

    A file is loaded once a process, however many of its functions are asked for; modules beside it can be imported by
    it.

    Args:
        spec: "file.py:function", relative to `base`, or "package.module:function", importable.
        base: folder that relative files are relative to.

    Raises:
        ConfigError: no such file, module or function, or the file raises when it is loaded.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name.isidentifier():
        raise ConfigError(f"{spec!r} names no function; expected file.py:function or package.module:function.")
    module = _load_file(base / where, spec) if where.endswith(".py") else _load_module(where, spec)
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    raise ConfigError(_no_function(spec, where, name, module, exists=hasattr(module, name)))


def _load_file(path: Path, spec: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{spec}: there is no file {path}.{hint}")
    # A name of its own for each path: two files called model.py do not replace each other.
    name = f"_hpcvol_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = importlib.util.spec_from_file_location(name, path)
    assert loader is not None  # a path that ends in .py always has one
    assert loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        loader.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{spec}: loading {path} failed{_line_of(error, path)}: {_words(error)}") from error
    return module


def _load_module(where: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{spec}: there is no module {error.name} on the import path. Install it, or name a file: "
                f"path/to/file.py:{spec.rpartition(':')[2]}."
            ) from error
        raise ConfigError(f"{spec}: importing {where} failed: {_words(error)}") from error
    except Exception as error:
        raise ConfigError(f"{spec}: importing {where} failed: {_words(error)}") from error


def _no_function(spec: str, where: str, name: str, module: ModuleType, exists: bool) -> str:
    if exists:
        return f"{spec}: {name} in {where} is a {type(getattr(module, name)).__name__}, expected a function."
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    near = difflib.get_close_matches(name, own, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    has = f"it has {', '.join(own)}" if own else "it defines no functions"
    return f"{spec}: there is no function {name} in {where}; {has}.{hint}"


def _line_of(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f" at {error.filename}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f" at line {lines[-1]}" if lines else ""


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
