"""Ranks of one machine as if they were on several hosts, which look at folders of their own."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import pytest

from hpcvol.comm import Group
from hpcvol.comm.machine import machine


@contextmanager
def as_hosts(group: Group, host_of_rank: Sequence[int]) -> Iterator[Group]:
    """Give a group of the same ranks on the nodes that `host_of_rank` says, called host0, host1, ... Collective.

    Args:
        group: all of its ranks call this.
        host_of_rank: number of the host for each rank.
    """
    made = group.split(0)
    made.node = group.split(host_of_rank[group.rank])
    made.hosts = tuple(f"host{host}" for host in host_of_rank)
    try:
        yield made
    finally:
        made.close()


def pretend(rank: int, size: int) -> None:
    """From now on have the first half of this program's ranks see no more of the others than of other hosts. Local."""
    host = f"host{0 if 2 * rank < size else 1}"
    for name, module in list(sys.modules.items()):
        if name.startswith("hpcvol") and getattr(module, "machine", None) is machine:
            module.machine = lambda: host  # type: ignore[attr-defined]


@contextmanager
def hosts_of(group: Group, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    """The ranks of `group` on two hosts, and what is split from them too; a group of one as it is. Collective."""
    if group.size == 1:
        yield group
        return
    layout = [0 if 2 * rank < group.size else 1 for rank in range(group.size)]
    with ExitStack() as made:
        spread = made.enter_context(as_hosts(group, layout))

        def split(color: int) -> Group:
            part = made.enter_context(closing(Group.split(spread, color)))
            return made.enter_context(as_hosts(part, [layout[group.members.index(one)] for one in part.members]))

        monkeypatch.setattr(spread, "split", split, raising=False)
        yield spread
