"""What starts a daemon on another host: a failure only where no rank ever ran."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcvol.comm import daemon_agent

# Stands for ssh: fails like one that loses its host, once somebody has looked for ranks.
SHELL = "#!/bin/sh\nwhile [ ! -e {looked} ]; do :; done\nexit 3\n"


@pytest.mark.parametrize(("ranks_seen", "status"), [([True, False], 0), ([False, True], 0), ([False], 3)])
def test_the_end_of_a_daemon_is_a_failure_where_no_rank_ever_ran(
    ranks_seen: list[bool], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell, looked = tmp_path / "shell", tmp_path / "looked"
    shell.write_text(SHELL.format(looked=looked))
    shell.chmod(0o755)
    looks = iter(ranks_seen)

    def ranks_run(_: int) -> bool:
        looked.touch()
        return next(looks, ranks_seen[-1])

    monkeypatch.setattr(daemon_agent, "_ranks_run", ranks_run)
    monkeypatch.setattr(sys, "argv", ["daemon_agent.py", str(shell), "host", "prted"])
    assert daemon_agent.main() == status


def test_a_daemon_in_slurm_has_a_step_of_its_own_that_leaves_the_host_to_its_ranks() -> None:
    step = daemon_agent._as_step(["-x", "-o", "BatchMode=yes", "h1", "prted", "--leave"])
    assert step[0] == "srun"
    assert step[-5:] == ["-w", "h1", "/bin/bash", "-c", "prted --leave"]
    assert {"--overlap", "--no-kill", "--cpu-bind=none", "--mem=0"} <= set(step)


def test_ranks_are_the_launchers_children_but_for_agents_forks_and_what_has_ended() -> None:
    def starts(*argv: str) -> subprocess.Popen[str]:
        child = subprocess.Popen([*argv], stdin=subprocess.PIPE, text=True)
        children.append(child)
        return child

    children: list[subprocess.Popen[str]] = []
    launcher = os.getpid()
    already = daemon_agent._ranks_run(launcher)
    try:
        starts("sh", "-c", "read line", "daemon_agent.py")
        ended = starts("true")
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert daemon_agent._ranks_run(launcher) == already
        starts("sh", "-c", "read line", "a rank")
        assert daemon_agent._ranks_run(launcher)
    finally:
        for child in children:
            child.communicate("\n")
    assert not already, "this test needs a process without children"
