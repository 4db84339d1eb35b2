"""Only who is gone was expelled, whoever else dies meanwhile."""

from types import SimpleNamespace
from typing import Any

import pytest

from hpcvol.elastic.checks import Guilty
from hpcvol.elastic.membership import MembersChanged, Membership
from hpcvol.errors import MemberError

GUILTY = 2


def expelled(monkeypatch: pytest.MonkeyPatch, deaths: list[int], error: type[Exception]) -> list[str]:
    """Return who was expelled where members die in this order, one each time that the others look."""
    group: Any = SimpleNamespace(rank=1, size=4, members=(0, 1, 2, 3), processes={}, barrier=None)
    group.name_of = lambda rank: f"member {group.members[rank]}"
    membership = Membership(group, enabled=False)
    membership.survives = True

    def settle(_: object) -> None:
        if deaths:
            dead = deaths.pop(0)
            group.members = tuple(one for one in group.members if one != dead)
            raise MembersChanged

    monkeypatch.setattr(membership, "settle", settle)
    with pytest.raises(error):
        membership.expel(Guilty(GUILTY, "wrong sum"), "step 7")
    assert not deaths
    return membership.expelled


def test_who_is_gone_was_expelled(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [f"member {GUILTY}: step 7: wrong sum"]
    assert expelled(monkeypatch, [GUILTY], MembersChanged) == told
    assert expelled(monkeypatch, [0, GUILTY], MembersChanged) == told


def test_who_goes_on_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expelled(monkeypatch, [], MemberError) == []
    assert expelled(monkeypatch, [0], MemberError) == []
