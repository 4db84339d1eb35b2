"""A bag gives out everything that was put into it."""

from hpcvol.elastic.bag import Bag
from hpcvol.elastic.units import Batching, UnitSpan


def spans(count: int) -> list[UnitSpan]:
    return Batching(count, count, 1).units(0)


def test_a_bag_is_empty_after_it_was_iterated() -> None:
    bag = Bag(spans(3))
    assert list(bag) == spans(3)
    assert list(bag) == []
    bag.put(spans(2))
    assert list(bag) == spans(2)


def test_units_put_back_while_it_runs_come_too() -> None:
    bag, came = Bag(spans(3)), []
    for span in bag:
        if span.index == 1 and span not in came:
            bag.put([span])
        came.append(span)
    assert [span.index for span in came] == [0, 1, 2, 1]


def test_units_put_back_with_the_last_one_out_come_too() -> None:
    bag, came = Bag(spans(1)), 0
    for span in bag:
        came += 1
        if came < 3:
            bag.put([span])
    assert came == 3
