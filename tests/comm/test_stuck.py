"""Members that stand in the way of others: who is killed for the others to go on."""

import pytest

from hpcvol.comm.accounts import Account
from hpcvol.comm.stuck import stuck_members

COMPUTES = Account("member 1 (a)", 11, answered=True, letter="R", share=1.0)
BUILDS = Account("member 1 (a)", 11, answered=True, letter="R", share=1.0, doing=("building the model", 9.0))
WAITS = Account("member 1 (a)", 11, answered=True, letter="S", share=0.0, waits="barrier (call 3 of a group of 2)")
STOPPED = Account("member 1 (a)", 11, answered=False, letter="T", share=0.0)
GONE = Account("member 1 (a)", 11, answered=False, letter="")
UNSEEN = Account("member 1 (a)", 11, answered=False)


@pytest.mark.parametrize("account", [COMPUTES, STOPPED])
def test_who_is_missing_and_waits_for_nobody_is_stuck(account: Account) -> None:
    assert stuck_members({1: account}, [1]) == [1]


@pytest.mark.parametrize("account", [BUILDS, WAITS, GONE, UNSEEN])
def test_who_has_a_reason_or_is_seen_by_nobody_is_not(account: Account) -> None:
    assert stuck_members({1: account}, [1]) == []


def test_who_came_to_the_call_is_stuck_only_where_it_is_stopped() -> None:
    assert stuck_members({1: COMPUTES, 2: STOPPED}, []) == [2]
