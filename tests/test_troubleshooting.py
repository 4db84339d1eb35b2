"""What docs/troubleshooting.md quotes is what hpcvol says: messages, commands, keys of the configuration."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpcvol.cli.main import app
from hpcvol.train.config import Config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
FOREIGN = "## Messages of MPI, Slurm and the system"
GAP = "\0"


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield message, cause and command of every row about hpcvol's own messages."""
    for line in PAGE.partition(FOREIGN)[0].splitlines():
        if line.startswith("| `"):
            _, message, cause, command, _ = re.split(r"(?<!\\)\|", line)
            yield message.strip().strip("`"), cause.strip(), command.strip()


def texts() -> Iterator[str]:
    """Yield every string in the sources, with GAP for what is filled in."""
    for path in sorted((ROOT / "hpcvol").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(one.value) if isinstance(one, ast.Constant) else GAP for one in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEXTS = list(texts())


def test_there_are_messages_to_look_for() -> None:
    assert len(list(rows())) > 30
    assert PAGE.count(FOREIGN) == 1


@pytest.mark.parametrize("message", [message for message, _, _ in rows()])
def test_every_quoted_message_is_in_the_sources(message: str) -> None:
    # What stands for something filled in may itself be a text that the sources choose from, such as `is empty`.
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.DOTALL)
    assert any(pattern.search(text) for text in TEXTS), f"hpcvol says nothing like {message!r}"


def test_every_row_has_a_cause_and_something_to_do() -> None:
    for message, cause, command in rows():
        assert cause, message
        assert command, message


def test_the_block_of_commands() -> None:
    """They are run by tests/doctor/test_checks.py and tests/cli/test_show_and_verify.py."""
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    assert block.splitlines() == ["hpcvol doctor", "hpcvol verify runs/job"]


def test_commands_and_their_options_exist() -> None:
    for command in sorted(set(re.findall(r"hpcvol (train|doctor|verify|show|new|data build)\b", PAGE))):
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0
    helps = "".join(
        CliRunner().invoke(app, [*command.split(), "--help"]).stdout for command in ("train", "doctor", "data build")
    )
    for option in ("--fresh", "--run-dir", "--hosts", "--overwrite", "--split", "--set", "--out"):
        assert option in PAGE
        assert option in helps


def test_keys_of_the_configuration_exist() -> None:
    keys = re.findall(r"\b(model|data|optimizer|train|checkpoint|comm)\.([a-z_]+)\b(?!\()", PAGE)
    assert len(keys) > 5
    for section, key in keys:
        if (section, key) != ("model", "py"):  # model.py is a file
            assert key in Config.model_fields[section].annotation.model_fields, f"{section}.{key}"
