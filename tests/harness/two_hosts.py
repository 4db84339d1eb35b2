"""Ranks of one machine as if they were on several hosts, which look at folders of their own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hpcvol.comm import Group


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
