"""The one place that reads the process environment."""

import os
from collections.abc import Mapping


def variable(name: str) -> str | None:
    """Return the value of environment variable `name`, or None where it is unset or empty."""
    return os.environ.get(name) or None


def expand(text: str) -> str:
    """Return `text` with `$NAME` and `${NAME}` replaced by what the variables hold; unset ones stay as they are."""
    return os.path.expandvars(text)


def snapshot() -> Mapping[str, str]:
    """Return a copy of the whole environment, for a child process."""
    return dict(os.environ)


def set_default(name: str, value: str) -> str:
    """Set `name` to `value` unless the user has set it; return what holds now.

    Only for libraries that read a setting from the environment alone (for example CUBLAS_WORKSPACE_CONFIG).
    """
    return os.environ.setdefault(name, value)
