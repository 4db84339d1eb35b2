"""Waiting for the agents of hosts: for those that may still answer, and no longer than it is worth."""

import pytest

from hpcvol.doctor import hosts

# Stands for ssh: called with a host's name and the agent's command.
REMOTE_SHELL = """
case $0 in
    answers) echo '{"hello": "nonce", "host": "answers"}'; exec cat ;;
    silent) exec cat >/dev/null ;;
    *) echo "no route to $0" >&2; exit 255 ;;
esac
"""


def told_of(*names: str) -> str:
    (said,) = hosts.examine_hosts(names, ["sh", "-c", REMOTE_SHELL])
    return said.found


def test_a_host_that_cannot_be_reached_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_START_SECONDS", 1000.0)
    assert told_of("answers", "gone") == "1 of 2 hosts answer; not gone: no route to gone"
    assert "0 of 2 hosts answer; not gone, lost: " in told_of("gone", "lost")


def test_a_host_that_is_silent_is_waited_for_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_START_SECONDS", 0.5)
    assert told_of("answers", "silent") == "1 of 2 hosts answer; not silent"
