"""Members that make different calls, or leave early: an error on all that shows both sides, and nobody hangs."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from launched import RunRanks

from hpcvol.comm import Group, together
from hpcvol.errors import CommError, DataError, MismatchError

CALLS: dict[str, Callable[[Group], object]] = {
    "barrier": lambda group: group.barrier(),
    "any": lambda group: group.any(False),
    "union": lambda group: group.union(1),
    "gather_objects": lambda group: group.gather_objects("x"),
    "broadcast_object": lambda group: group.broadcast_object("x"),
    "split": lambda group: group.split(0),
}


@pytest.mark.parametrize("one", CALLS)
def test_different_calls_are_an_error_on_all_that_shows_both_sides(group: Group, one: str) -> None:
    if group.size == 1:
        pytest.skip("one rank agrees with itself")
    names = list(CALLS)
    other = names[(names.index(one) + 1) % len(names)]
    with pytest.raises(CommError) as caught:
        CALLS[other if group.rank == group.size - 1 else one](group)
    said = str(caught.value)
    assert isinstance(caught.value, MismatchError)
    assert caught.value.everywhere
    lines = [line for line in said.splitlines() if "test_disagreement.py:" in line]
    assert len(lines) == 2
    assert f" {one} " in lines[0].replace(" from rank 0", "")
    assert group.name_of(0) in lines[0]
    assert f" {other} " in lines[1].replace(" from rank 0", "")
    assert group.name_of(group.size - 1) in lines[1]


def test_a_group_goes_on_after_a_disagreement_that_all_have_seen(group: Group) -> None:
    if group.size > 1:
        with pytest.raises(MismatchError):
            group.broadcast_object("x", root=group.rank % 2)
    assert group.gather_objects(group.rank) == list(range(group.size))


def test_a_disagreement_is_left_to_the_meeting(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine interrupts one rank between its board and the meeting: others see it there, and wait for it."""
    meet = Group.meet

    def meet_late(self: Group, *given: Any) -> list[int]:
        time.sleep(0.3)
        return meet(self, *given)

    if group.rank == 1:
        monkeypatch.setattr(Group, "meet", meet_late)
    if group.size > 1:
        with pytest.raises(MismatchError):
            group.broadcast_object("x", root=group.rank % 2)
    monkeypatch.undo()
    assert group.gather_objects(group.rank) == list(range(group.size))


def test_objects_of_any_length_arrive(group: Group) -> None:
    gathered = group.gather_objects("x" * group.rank * 1000)
    assert [len(text) for text in gathered] == [rank * 1000 for rank in range(group.size)]
    assert group.broadcast_object("y" * 100_000 if group.rank == group.size - 1 else None, group.size - 1)[-1] == "y"


def test_flags_have_63_bits(group: Group) -> None:
    assert group.union((1 << 62) | (1 << group.rank)) == (1 << 62) | ((1 << group.size) - 1)


def test_what_went_wrong_before_is_told(group: Group) -> None:
    """A rank that failed is at the end of `together` while the others have gone on to another call."""
    if group.size == 1:
        pytest.skip("one rank agrees with itself")
    if group.rank == 0:
        with pytest.raises(DataError, match="torn"), together(group, "reading"):
            raise DataError("shard 3 is torn")
    else:
        with pytest.raises(MismatchError, match=r"after hpcvol\.errors\.DataError: shard 3 is torn"):
            group.barrier()


START = "import sys, os\nfrom hpcvol.comm import start\nworld = start()\n"


@pytest.mark.parametrize("leaver", [0, 1])
@pytest.mark.parametrize("status", [0, 3])
def test_a_member_that_exits_while_others_wait_is_named(run_ranks: RunRanks, leaver: int, status: int) -> None:
    ended = run_ranks(3, ["-c", START + f"if world.rank == {leaver}: sys.exit({status})\nworld.barrier()"])
    assert ended.returncode != 0
    assert ended.stderr.count("hpcvol: error: ") == 1
    assert f"hpcvol: error: member {leaver} (" in ended.stderr
    assert "came to the end of its program while member" in ended.stderr
    assert "wait for it in barrier (collective call 1) at <string>:5 <module>" in ended.stderr


def test_a_member_that_exits_while_a_part_of_the_others_waits_for_it(run_ranks: RunRanks) -> None:
    script = "part = world.split(world.rank // 2)\nif world.rank == 3: sys.exit()\nif world.rank == 2: part.barrier()"
    ended = run_ranks(4, ["-c", START + script])
    assert ended.returncode != 0
    assert "hpcvol: error: member 3 (" in ended.stderr
    assert "while member 2 (" in ended.stderr


def test_a_member_that_is_killed_while_others_wait_is_named(run_ranks: RunRanks) -> None:
    script = "if world.rank == 1: os.kill(os.getpid(), 9)\nworld.barrier()\nsys.stdout.write('went on')"
    ended = run_ranks(2, ["-c", START + script])
    assert ended.returncode != 0
    assert "went on" not in ended.stdout
    # By us or by the launcher, whoever is faster.
    said = ended.stdout + ended.stderr
    assert "member 1 (" in said or "signal 9" in said


def test_who_ends_first_waits_for_the_others(run_ranks: RunRanks) -> None:
    script = (
        "import time\n"
        "part = world.split(int(world.rank == 0))\n"
        "if world.rank > 0:\n"
        "    for _ in range(20): time.sleep(0.02); part.barrier()\n"
        "sys.stdout.write(f'{world.rank} done\\n')"
    )
    ended = run_ranks(3, ["-c", START + script])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.splitlines()) == ["0 done", "1 done", "2 done"]
