"""What members tell each other after each step, in one collective.

Who wants to stop, how checkpoints are doing, and each its part of the digest of the model that they have come to.
"""

from enum import IntFlag

from hpcvol import tracing
from hpcvol.comm import Group, together
from hpcvol.train.cadence import Cadence
from hpcvol.train.saving import Saver
from hpcvol.train.state_digest import digest_from


class Notice(IntFlag):
    """News of one step."""

    STOP = 1  # somebody was asked to stop
    FAILED = 2  # somebody's checkpoint could not be written
    BUSY = 4  # somebody is writing one
    DUE = 8  # the first member wants one
    CLOCKS = 16  # the first member wants clocks compared
    STAYS = 32  # somebody was not asked to end


def exchange(
    group: Group,
    saver: Saver,
    cadence: Cadence,
    step: int,
    part: int,
    *,
    stop: bool,
    ends: bool,
    compare_clocks: bool = False,
) -> tuple[Notice, str]:
    """Tell the other members what is up after `step` steps, and learn it from them. Collective: one small all-gather.

    Args:
        group: the live ranks.
        saver: this member's checkpoints.
        cadence: tells the first member when one is due.
        step: steps made.
        part: what this member adds to the digest of the model.
        stop: whether this member was asked to stop the run.
        ends: whether it was asked to end itself; all of them are asked to stop the run.
        compare_clocks: whether the first member wants clocks compared.

    Returns:
        What is up, and the digest.

    Raises:
        CheckpointError: a checkpoint that was being written could not be; on every member.
    """
    mine = Notice(0)
    if stop:
        mine |= Notice.STOP
    if not ends:
        mine |= Notice.STAYS
    if saver.failed:
        mine |= Notice.FAILED
    if saver.busy:
        mine |= Notice.BUSY
    if group.rank == 0 and cadence.due(step):
        mine |= Notice.DUE
    if group.rank == 0 and compare_clocks:
        mine |= Notice.CLOCKS
    with tracing.span("exchange notices"):
        everybody = group.gather_objects((int(mine), part))
    notices = Notice(0)
    for theirs, _ in everybody:
        notices |= Notice(theirs)
    if not notices & Notice.STAYS:
        notices |= Notice.STOP
    if notices & Notice.FAILED:
        with together(group, "writing a checkpoint"):
            if mine & Notice.FAILED:
                saver.wait()
    if notices & Notice.BUSY and cadence.can_wait:
        notices &= ~Notice.DUE
    return notices, digest_from(part for _, part in everybody)
