"""docs/run-directory.md tells of every file, field and span that a run writes, and of no other."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from digits_project import Project

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "run-directory.md"


def documented(section: str) -> set[str]:
    """Return the first column of the tables in a section of the page, but for what is said of work lost."""
    text = PAGE.read_text(encoding="utf-8")
    body = re.split(rf"^#+ {re.escape(section)}$", text, flags=re.MULTILINE)[1]
    body = re.split(r"^#+ ", body, flags=re.MULTILINE)[0]
    return set(re.findall(r"^\| `([^`]+)` \|", body, flags=re.MULTILINE))


def fields(state: dict[str, Any], nested: tuple[str, ...] = ()) -> Iterator[str]:
    for key, value in state.items():
        if key in nested:
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield key


# Of runs that have supernodes, servers, or steps that are stale.
SELDOM = {"who", "step", "missed", "groups", "shards", "computes"}


def test_every_file_and_field(project: Project) -> None:
    assert project.train(
        "run", "checkpoint.every_steps=4", "train.validate_every_steps=4", "checkpoint.keep=1", "train.trace=true"
    )
    run = project.folder / "run"
    found = {
        f"{path.relative_to(run)}{'/' if path.is_dir() and not path.is_symlink() else ''}" for path in run.iterdir()
    }
    found |= {f"checkpoints/{path.name}{'' if path.is_symlink() else '/'}" for path in (run / "checkpoints").iterdir()}
    files = {name.replace("00000120", "00000006") for name in documented("The run directory")}
    assert found - {"checkpoints/"} == files
    checkpoint = project.checkpoint("run", 6)
    assert {path.name for path in checkpoint.iterdir()} == documented("A checkpoint") - {"residuals.safetensors"}
    state = json.loads((checkpoint / "state.json").read_text())
    assert set(fields(state, ("run", "progress"))) == documented("state.json")
    assert set(json.loads((run / "summary.json").read_text())) == documented("summary.json")
    entries = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert {key for entry in entries for key in entry} == documented("ledger.jsonl") - SELDOM | {"prev"}
    lines = project.metrics("run")
    own = {"accuracy"}
    assert {key for line in lines for key in line} - own == documented("metrics.jsonl") - {
        "codec",
        "codec_seconds",
        "staleness",
    }
    (numerics,) = state["numerics"]
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in numerics)


def test_every_span() -> None:
    calls = [
        node
        for file in (ROOT / "hpcvol").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tracing.span", "tracing.record")
    ]
    recorded = {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}
    body = PAGE.read_text(encoding="utf-8").split("## trace.json")[1].split("| span |")[1].split("\n\n")[0]
    told = {name for row in body.splitlines() for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}
    assert recorded == told
