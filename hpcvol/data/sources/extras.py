"""Packages that only some kinds of input need."""

import importlib.util

from hpcvol.errors import ConfigError


def required(package: str, extra: str) -> None:
    """Refuse to go on without `package`, which comes with the extra `extra` of hpcvol."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f'This needs the package {package}, which is not installed: pip install "hpcvol[{extra}]".')
