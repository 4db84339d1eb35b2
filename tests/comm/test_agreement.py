"""Errors on some ranks become the same error on all."""

import pytest

from hpcvol.comm import Group, agree, together
from hpcvol.errors import DataError, HpcvolError, MemberError


def test_no_error_is_no_error(group: Group) -> None:
    agree(group, None, "opening the data")
    with together(group, "opening the data"):
        pass


def test_an_error_of_one_rank_is_raised_on_all(group: Group) -> None:
    last = group.size - 1
    mine = DataError("shard 3 is torn") if group.rank == last else None
    with pytest.raises(DataError, match="shard 3 is torn") as caught:
        agree(group, mine, "opening the data")
    assert caught.value.everywhere
    assert len(set(group.gather_objects(str(caught.value)))) == 1
    if group.size > 1:
        assert str(caught.value).startswith(f"{group.name_of(last)}, opening the data: ")


def test_the_same_error_on_all_ranks_names_none(group: Group) -> None:
    with pytest.raises(DataError, match=r"^no such dataset$") as caught:
        agree(group, DataError("no such dataset"), "opening the data")
    assert caught.value.everywhere


def divide(dividend: int, divisor: int) -> float:
    return dividend / divisor


def test_a_foreign_error_comes_with_member_message_and_traceback(group: Group) -> None:
    with pytest.raises(MemberError) as caught, together(group, "building the model"):
        divide(1, group.rank)
    said = str(caught.value)
    assert "failed while building the model: ZeroDivisionError: division by zero" in said
    assert "test_agreement.py" in said
    assert caught.value.everywhere
    if group.size > 1:
        assert said.startswith(group.name_of(0))
    assert (caught.value.__cause__ is not None) == (group.rank == 0)


def test_other_members_that_failed_are_listed(group: Group) -> None:
    if group.size < 3:
        pytest.skip("takes three ranks")
    error = DataError(f"row {group.rank} is missing") if group.rank > 0 else None
    with pytest.raises(DataError) as caught:
        agree(group, error, "reading")
    others = ", ".join(str(member) for member in range(2, group.size))
    assert str(caught.value) == f"{group.name_of(1)}, reading: row 1 is missing\n(members that failed too: {others})"


class UnpicklableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = open(__file__)  # noqa: SIM115


def test_an_error_that_does_not_pickle_travels(group: Group) -> None:
    error = UnpicklableError("one", "two") if group.rank == group.size - 1 else None
    with pytest.raises(MemberError, match="one and two"):
        agree(group, error, "testing")
    if error is not None:
        error.lock.close()


def test_an_interrupt_interrupts_all(group: Group) -> None:
    error: BaseException = KeyboardInterrupt() if group.rank == 0 else HpcvolError("something else")
    with pytest.raises(KeyboardInterrupt):
        agree(group, error, "training")
