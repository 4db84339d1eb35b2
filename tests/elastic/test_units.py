"""Units cut an epoch so that every sample is used exactly once, whatever the sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.elastic.units import Batching, UnitSpan, default_unit_size, merge
from hpcvol.errors import ConfigError

sizes = st.integers(1, 60)


@given(st.integers(1, 400), sizes, sizes, st.integers(0, 3))
def test_an_epoch_uses_every_sample_once_and_in_order(samples: int, batch: int, unit: int, epoch: int) -> None:
    batching = Batching(samples, batch, unit)
    first = epoch * batching.steps_per_epoch
    spans = [span for step in range(first, first + batching.steps_per_epoch) for span in batching.units(step)]
    positions = [position for span in spans for position in range(span.position, span.position + span.count)]
    assert positions == list(range(samples))
    assert {span.epoch for span in spans} == {epoch}
    assert batching.epoch(first) == batching.epoch(first + batching.steps_per_epoch - 1) == epoch


@given(st.integers(1, 400), sizes, sizes, st.integers(0, 100))
def test_units_of_a_step(samples: int, batch: int, unit: int, step: int) -> None:
    batching = Batching(samples, batch, unit)
    spans = batching.units(step)
    assert [(span.step, span.index) for span in spans] == [(step, index) for index in range(len(spans))]
    assert all(1 <= span.count <= unit for span in spans)
    counts = {span.count for span in spans}
    assert max(counts) - min(counts) <= 1
    last_of_epoch = (step + 1) % batching.steps_per_epoch == 0
    left = samples - (batching.steps_per_epoch - 1) * batch
    assert sum(span.count for span in spans) == (left if last_of_epoch else batch)
    assert len(spans) <= batching.units_per_step


@given(st.integers(1, 400), sizes, sizes, st.integers(0, 20), st.data())
def test_merging_neighbours_keeps_their_samples(
    samples: int, batch: int, unit: int, step: int, data: st.DataObject
) -> None:
    spans = Batching(samples, batch, unit).units(step)
    start = data.draw(st.integers(0, len(spans) - 1))
    part = spans[start : data.draw(st.integers(start + 1, len(spans)))]
    (whole,) = merge(part)
    assert (whole.step, whole.index, whole.epoch) == (step, start, part[0].epoch)
    assert whole.position == part[0].position
    assert whole.position + whole.count == part[-1].position + part[-1].count


def test_merging_nothing_is_nothing() -> None:
    assert merge([]) == []


def test_a_unit_is_named_by_step_and_index() -> None:
    assert Batching(10, 4, 3).units(2) == [UnitSpan(2, 0, 0, 8, 2)]
    assert Batching(10, 4, 3).units(3) == [UnitSpan(3, 0, 1, 0, 2), UnitSpan(3, 1, 1, 2, 2)]


@pytest.mark.parametrize(("batch", "unit"), [(1, 1), (7, 1), (8, 1), (9, 2), (64, 8), (65, 9)])
def test_default_units_are_at_most_eight(batch: int, unit: int) -> None:
    assert default_unit_size(batch) == unit
    assert Batching(1000, batch, unit).units_per_step <= 8


@pytest.mark.parametrize(
    ("samples", "batch", "unit", "said"),
    [(0, 4, 2, "0 samples"), (5, 0, 2, "batch_size = 0"), (5, 4, -1, "unit_size = -1")],
)
def test_sizes_below_one_are_refused(samples: int, batch: int, unit: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Batching(samples, batch, unit)
