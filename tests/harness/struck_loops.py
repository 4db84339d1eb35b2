"""Loops of a user's own whose members are struck while they run (`strikes`): what those say that live to the end."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launched import RunProgram

from hpcvol import environment
from hpcvol.comm import launch_command

Said = dict[str, Any]
SECONDS = 240.0

# As `hpcvol train` does: a launcher that misses the end of its last rank is ended.
SUPERVISED = """
import os, sys
from hpcvol.cli.supervision import supervise
sys.exit(supervise(sys.argv[1:], dict(os.environ)).status)
"""


def run_struck(
    folder: Path,
    run_program: RunProgram,
    ranks: int,
    strikes: list[list[Any]],
    loop: str,
    arguments: Sequence[str],
    ends: str | None = None,
) -> list[Said]:
    """Run a loop; return what the members that lived to the end said, in the order of their ids.

    Args:
        folder: for the loop, which writes `memberN.json` there; made here.
        run_program: the fixture.
        ranks: how many.
        strikes: as in `strikes`; that each point was reached is asserted.
        loop: the program; its first argument is the folder.
        arguments: the others.
        ends: what the run ends with, where it does not go on.
    """
    folder.mkdir()
    (folder / "loop.py").write_text(loop)
    program = [sys.executable, str(folder / "loop.py"), str(folder), *arguments]
    launch = launch_command(ranks, program, elastic=True)
    argv = [sys.executable, "-c", SUPERVISED, *launch.argv]
    variables = {
        "HARNESS": str(Path(__file__).parent),
        "STRIKES": json.dumps(strikes),
        "STRUCK": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    done = run_program(argv, variables={**environment.snapshot(), **launch.environment, **variables}, seconds=SECONDS)
    print(done.stderr)  # for who reads of a failure
    assert ends is None or (done.returncode != 0 and ends in done.stderr), done.stderr
    for member, point, _ in strikes:
        assert (folder / f"struck-{member}-{str(point).replace(' ', '_')}").exists(), f"{point} was not reached"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("member*.json"))]
