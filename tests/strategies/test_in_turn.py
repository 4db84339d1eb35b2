"""The thread that communicates beside the one that computes."""

import threading

from hpcvol.comm import Group
from hpcvol.strategies.in_turn import turns_of


def test_it_ends_with_its_group(group: Group) -> None:
    before = threading.active_count()
    own = group.split(0)
    turns, ran = turns_of(own), list[list[int]]()
    for _ in range(3):
        turns.give(lambda: ran.append(turns.group.gather_objects(turns.group.rank)))
    turns.wait()
    own.close()
    assert (ran, threading.active_count()) == ([list(range(group.size))] * 3, before)
