"""Which nodes form a group, by the speed of their links."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.comm import Group
from hpcvol.errors import ConfigError
from hpcvol.strategies.supernodes import Grouping, Supernodes, _rounds, clusters


@given(st.integers(0, 40))
def test_everybody_meets_everybody_once(count: int) -> None:
    rounds = _rounds(count)
    pairs = [pair for one in rounds for pair in one]
    assert sorted(pairs) == list(itertools.combinations(range(count), 2))
    assert len(rounds) <= count
    for one in rounds:
        nodes = [node for pair in one for node in pair]
        assert len(nodes) == len(set(nodes))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.floats(1e-6, 10), st.floats(3.5, 1000), st.data())
def test_sites_are_found(sites: list[int], fast: float, times: float, data: st.DataObject) -> None:
    """Links within a site differ by less than those between sites do from them."""
    pairs = list(itertools.combinations(range(len(sites)), 2))
    seconds = {
        (one, other): fast * data.draw(st.floats(1, 1.1)) * (1 if sites[one] == sites[other] else times)
        for one, other in pairs
    }
    found = clusters(len(sites), seconds)
    alike = len({sites[one] == sites[other] for one, other in pairs}) < 2
    wanted = list(range(len(sites))) if alike else [sites.index(site) for site in sites]
    assert found == wanted


def test_on_one_node_all_are_one_group(group: Group) -> None:
    assert (
        group.gather_objects(Supernodes("link", 2).color(group, range(group.size))) == [group.members[0]] * group.size
    )


def test_servers_belong_to_no_group(group: Group) -> None:
    if group.size < 3:
        pytest.skip("a server and two workers")
    apart = group.members[1]
    workers = [member for member in group.members if member != apart]
    for spec, wanted in ((None, [(one,) for one in workers]), (Supernodes("node"), [tuple(workers)])):
        grouping = Grouping(group, spec, lambda: [apart])
        for _ in range(2):
            assert grouping.teams == wanted
            assert (grouping.index, grouping.team.size == 1) == (
                (-1, True) if group.rank == 1 else (grouping.index, len(wanted) > 1)
            )
            assert group.gather_objects(grouping.is_leader).count(True) == len(wanted)
            assert grouping.leaders == [group.members.index(team[0]) for team in wanted]
            grouping.rebuild()
        grouping.team.close()
    with pytest.raises(ConfigError, match=f"strategy.groups = {group.size} of {group.size - 1} members that compute"):
        Grouping(group, Supernodes(group.size), lambda: [apart])
