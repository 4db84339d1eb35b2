"""Asking other programs, which may be missing, fail, print anything, or never end."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hpcvol import environment


@dataclass(frozen=True)
class Answer:
    """What a program answered.

    Args:
        status: its exit status, negative for the signal that ended it; None where it could not be started or did not
            end in time.
        stdout: what it printed.
        stderr: what it complained about, or why there is no answer.
        late: whether it did not end in time.
    """

    status: int | None
    stdout: str
    stderr: str
    late: bool = False

    @property
    def good(self) -> bool:
        """Whether it ended well."""
        return self.status == 0

    @property
    def complaint(self) -> str:
        """The last line of what it said, for a message."""
        lines = [line.strip() for line in (self.stderr + "\n" + self.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        return (errors or lines or [f"status {self.status}"])[-1][:300]


def ask(argv: Sequence[str], seconds: float, variables: Mapping[str, str] | None = None) -> Answer:
    """Run `argv` for at most `seconds`, then end it with all that it started. Local.

    Args:
        argv: the program and its arguments.
        seconds: limit.
        variables: on top of the environment.
    """
    try:
        process = subprocess.Popen(
            argv,
            env={**environment.snapshot(), **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, "", f"{argv[0]}: {error.strerror}")
    with process:
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            end(process)
            stdout, stderr = process.communicate()
            return Answer(None, stdout, f"{stderr}\n{argv[0]} did not end within {seconds:g} s", late=True)
        finally:
            end(process)
    return Answer(process.returncode, stdout, stderr)


def end(process: "subprocess.Popen[str]") -> None:
    """Kill the session that `process` leads."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def json_lines(text: str) -> list[dict[str, Any]]:
    """Return the lines of `text` that are JSON objects; libraries print lines of their own between them."""
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            content = json.loads(line)
            if isinstance(content, dict):
                found.append(content)
    return found
