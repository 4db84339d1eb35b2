"""A plain PyTorch script becomes an hpcvol script with at most six changed lines, and both learn to read digits."""

import ast
import difflib
import re
import sys
from pathlib import Path

import pytest
from launched import RunProgram, RunRanks

EXAMPLES = Path(__file__).parents[2] / "examples"
PLAIN, OWN = EXAMPLES / "plain_loop.py", EXAMPLES / "own_loop.py"


def code_lines(file: Path) -> list[str]:
    """Return the lines of code: neither the docstring at the top, nor empty ones."""
    text = file.read_text(encoding="utf-8")
    docstring = ast.parse(text).body[0]
    return [line for line in text.splitlines()[docstring.end_lineno :] if line.strip()]


def num_changed_lines(old: list[str], new: list[str]) -> int:
    """Return how many lines were replaced, added or removed; a line replaced by another counts once."""
    changes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in changes if kind != "equal")


def test_counting() -> None:
    assert num_changed_lines(["a", "b", "c"], ["a", "b", "c"]) == 0
    assert num_changed_lines(["a", "b", "c"], ["a", "x", "c", "d"]) == 2
    assert num_changed_lines(["a", "b", "c"], ["c"]) == 2


def test_at_most_six_lines_change() -> None:
    assert 0 < num_changed_lines(code_lines(PLAIN), code_lines(OWN)) <= 6


def shares_read(output: str) -> list[str]:
    """Return what each rank printed; without lines, as ranks share the pipe and may end theirs together."""
    return re.findall(r"([\d.]+)% of the digits are read right", output)


@pytest.mark.any_mpi
def test_the_plain_loop(run_program: RunProgram) -> None:
    done = run_program([sys.executable, str(PLAIN)])
    assert done.returncode == 0, done.stderr
    (share,) = shares_read(done.stdout)
    assert float(share) > 95


@pytest.mark.limit_seconds(120)
@pytest.mark.any_mpi
def test_the_loop_on_two_ranks(run_ranks: RunRanks) -> None:
    done = run_ranks(2, [str(OWN)], seconds=100)
    assert done.returncode == 0, done.stderr
    one, other = shares_read(done.stdout)
    assert one == other  # both ranks have the same model
    assert float(one) > 95
