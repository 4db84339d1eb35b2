"""Which members stand in the way of those that wait, so that a run that outlives them can go on without them. Pure."""

from collections.abc import Container, Mapping

from hpcvol.comm.accounts import Account

_STOPPED = ("T", "t")
_UNSEEN = ("", "?")


def stuck_members(told: Mapping[int, Account], missing: Container[int]) -> list[int]:
    """Return the members that keep others waiting and wait for nobody themselves, in order.

    Args:
        told: what is known of members that are waited for, by id.
        missing: the ids of those that have not come to the call in which others wait.
    """
    return sorted(
        member
        for member, account in told.items()
        if account.letter in _STOPPED
        or (member in missing and account.waits is None and not account.excused and account.letter not in _UNSEEN)
    )
