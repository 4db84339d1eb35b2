"""The exact sum itself: independent of order, partition and grouping; overflow; what is not finite."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import alone

from hpcvol.comm import Group, start
from hpcvol.errors import CheckpointError, ModelError
from hpcvol.kernels.fixed_point import BLOCK_NUMEL, INFINITE, NOT_A_NUMBER, ZERO, accumulate
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.torch.exact import (
    DEFAULT_EXPONENT,
    ExactSum,
    Term,
    accumulate_in_torch,
    target_bits,
)

CPU = torch.device("cpu")
NAMES = ["first", "second", "third"]
SHAPES = [(5,), (3, 4), (1,)]
Unit = tuple[list[torch.Tensor], int]


def make_sum(
    group: Group, units: int = 8, shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32
) -> ExactSum:
    terms = [Term(name, math.prod(shape)) for name, shape in zip(NAMES, shapes, strict=False)]
    return ExactSum(terms, units, AllReduce(group), CPU, dtype)


def make_units(count: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[Unit]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            [scale * torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES],
            int(torch.randint(1, 300, (), generator=generator)),
        )
        for _ in range(count)
    ]


def add(total: ExactSum, units: Sequence[Unit]) -> None:
    for tensors, weight in units:
        for index, values in enumerate(tensors):
            total.add(index, values, weight)


def means(total: ExactSum, weight: int) -> list[torch.Tensor]:
    """Sum over all ranks and return the means. Collective."""
    total.finish(weight)
    return [total.mean(index).clone().view(shape) for index, shape in enumerate(SHAPES)]


def exponents_of(total: ExactSum) -> list[list[int]]:
    """The exponents in use, by term and block."""
    return [total._exponents[total._cut.blocks_of(index)].tolist() for index in range(len(total._terms))]


def begin_again(total: ExactSum) -> None:
    total.drop()
    total.reset()


def summed(total: ExactSum, mine: Sequence[Unit], weight: int) -> list[bytes]:
    """Sum `mine` of all ranks, redone as often as `total` asks, and return the means' bits. Collective."""
    add(total, mine)
    while not total.agree():
        begin_again(total)
        add(total, mine)
    return [mean.numpy().tobytes() for mean in means(total, weight)]


def test_order_and_partition_leave_no_trace(group: Group) -> None:
    units = make_units(8)
    weight = sum(w for _, w in units)
    with alone(group) as single:
        reference = summed(make_sum(single), units, weight)
    for seed in range(5):
        shuffled = random.Random(seed).sample(units, len(units))
        owner = [random.Random(f"{seed} {i}").randrange(group.size) for i in range(len(units))]
        mine = [unit for unit, rank in zip(shuffled, owner, strict=True) if rank == group.rank]
        assert summed(make_sum(group), mine, weight) == reference


def test_grouping_of_tensors_leaves_no_trace(group: Group) -> None:
    """One sum of three tensors, and three sums of one: an exponent belongs to a tensor, not to a bucket."""
    units = make_units(6)
    units[0][0][1].mul_(1e9)  # one tensor far larger than the others
    weight = sum(w for _, w in units)
    mine = units[group.rank :: group.size]
    together = summed(make_sum(group), mine, weight)
    for index, shape in enumerate(SHAPES):
        single = ExactSum([Term(NAMES[index], math.prod(shape))], 8, AllReduce(group), CPU)
        while True:
            for tensors, w in mine:
                single.add(0, tensors[index], w)
            if single.agree():
                break
            begin_again(single)
        single.finish(weight)
        assert single.mean(0).numpy().tobytes() == together[index]


def exact_means(units: Sequence[Unit]) -> list[list[Fraction]]:
    weight = sum(w for _, w in units)
    return [
        [
            sum(w * Fraction(float(tensors[index].reshape(-1)[i])) for tensors, w in units) / Fraction(weight)
            for i in range(math.prod(shape))
        ]
        for index, shape in enumerate(SHAPES)
    ]


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(0, 10**6), st.integers(-60, 25), st.integers(-12, 9))
def test_error_bound_of_float32(count: int, seed: int, power: int, change: int) -> None:
    """|mean - exact mean| ≤ units · 2^(-e-1) / Σ weight, then one rounding; e from a step of other magnitude."""
    group = start()
    total = make_sum(group, count)
    summed(total, make_units(count, seed + 1, scale=2.0**power), 1)
    total.commit()
    total.reset()
    units = make_units(count, seed, scale=2.0 ** (power + change))
    weight = sum(w for _, w in units)
    add(total, units)
    if not total.agree():
        begin_again(total)
        add(total, units)
        assert total.agree()
    for index, (found, exact) in enumerate(zip(means(total, weight), exact_means(units), strict=True)):
        bound = Fraction(count) / (2 * weight * Fraction(2) ** exponents_of(total)[index][0])
        for value, wanted in zip(found.reshape(-1).tolist(), exact, strict=True):
            rounding = (abs(wanted) + bound) * Fraction(2) ** -24 * (1 + Fraction(2) ** -27) + Fraction(2) ** -150
            assert abs(Fraction(value) - wanted) <= bound + rounding


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(0, 10**6), st.integers(-300, 300))
def test_error_bound_of_float64(count: int, seed: int, power: int) -> None:
    """In double the product with a weight, the sum as a double, and the division are rounded too."""
    group = start()
    total = make_sum(group, count, dtype=torch.float64)
    units = make_units(count, seed, torch.float64, 2.0**power)
    weight = sum(w for _, w in units)
    summed(total, units, 1)
    total.commit()
    total.reset()
    add(total, units)
    assert total.agree()
    for index, (found, exact) in enumerate(zip(means(total, weight), exact_means(units), strict=True)):
        for i, (value, wanted) in enumerate(zip(found.reshape(-1).tolist(), exact, strict=True)):
            magnitude = sum(w * abs(Fraction(float(tensors[index].reshape(-1)[i]))) for tensors, w in units) / weight
            bound = Fraction(count) / (2 * weight * Fraction(2) ** exponents_of(total)[index][0])
            assert abs(Fraction(value) - wanted) <= bound + 4 * magnitude * Fraction(2) ** -53


@pytest.mark.parametrize(("dtype", "units", "bits"), [(torch.float32, 8, 27), (torch.float64, 8, 49)])
def test_history_keeps_that_many_bits_of_the_largest_term(
    group: Group, dtype: torch.dtype, units: int, bits: int
) -> None:
    total = make_sum(group, units, dtype=dtype)
    terms = make_units(units)
    summed(total, terms[group.rank :: group.size], 1)
    total.commit()
    total.reset()
    assert target_bits(units, dtype) == bits
    for index, exponents in enumerate(exponents_of(total)):
        largest = max(float((w * tensors[index].double()).abs().max()) for tensors, w in terms)
        assert 2.0 ** (bits - 1) <= largest * 2.0 ** exponents[0] < 2.0**bits


def test_sums_of_eight_units_fit_into_32_bits(group: Group) -> None:
    """What hosts send one another: four bytes an element where the step before was of the same magnitude."""
    total = make_sum(group)
    for seed in range(2):
        total.commit()
        total.reset()
        summed(total, make_units(8, seed)[group.rank :: group.size], 1)
    largest = int(total._total.abs().max())
    assert 0 < largest < 2**31
    assert target_bits(1, torch.float32) + 2 <= 31


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("huge", [2.0**20, 1e30])
def test_an_overflow_redoes_the_whole_step(group: Group, dtype: torch.dtype, huge: float) -> None:
    units = make_units(8, dtype=dtype)
    units[5][0][1][2, 3] = huge  # of the second tensor alone
    weight = sum(w for _, w in units)
    mine = units[group.rank :: group.size]
    total = make_sum(group, dtype=dtype)
    add(total, mine)
    assert not total.agree()
    total.drop()
    begin_again(total)
    before = exponents_of(total)
    assert before[0] == before[2] == [DEFAULT_EXPONENT]
    assert before[1] != [DEFAULT_EXPONENT]
    assert len(set(map(str, group.gather_objects(before)))) == 1
    add(total, mine)
    assert total.agree()
    found = means(total, weight)
    exact = torch.stack([w * tensors[1].double() for tensors, w in units]).sum(0) / weight
    assert float((found[1].double() - exact).abs().max()) <= float(exact.abs().max()) * 2.0**-23
    with alone(group) as single:
        reference = make_sum(single, dtype=dtype)
        add(reference, units)
        assert not reference.agree()
        begin_again(reference)
        add(reference, units)
        assert reference.agree()
        for one, other in zip(found, means(reference, weight), strict=True):
            assert torch.equal(one, other)


def test_the_largest_term_that_fits_is_summed_right(group: Group) -> None:
    """Eight terms just below 2^62 / 8 add up to just below 2^62."""
    value = math.nextafter(2.0 ** (59 - DEFAULT_EXPONENT), 0)
    total = ExactSum([Term("one", 1)], 8, AllReduce(group), CPU, torch.float64)
    for _ in range(8)[group.rank :: group.size]:
        total.add(0, torch.tensor([value], dtype=torch.float64), 1)
    assert total.agree()
    total.finish(8)
    assert float(total.mean(0)) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("magnitude", [1e-320, 1e-200, 1e200, 1.5e308])
def test_the_ends_of_double_precision(group: Group, magnitude: float) -> None:
    total = ExactSum([Term("one", 2)], 4, AllReduce(group), CPU, torch.float64)
    value = torch.tensor([magnitude, -magnitude / 2], dtype=torch.float64)
    for _ in range(3):
        for attempt in range(3):
            if group.rank == 0:
                total.add(0, value, 1)
            if total.agree():
                break
            assert attempt == 0
            begin_again(total)
        total.finish(1)
        out = total.mean(0).clone()
        total.commit()
        total.reset()
    if magnitude < 1e-315:  # finer than the finest exponent
        assert torch.equal(out, torch.zeros(2, dtype=torch.float64))
    else:
        assert torch.allclose(out, value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("after", [False, True])
def test_what_is_not_finite_on_one_rank_is_refused_on_all(group: Group, bad: float, after: bool) -> None:
    total = make_sum(group)
    units = make_units(3)
    if group.rank == group.size - 1:
        units[0 if after else 2][0][1][1, 2] = bad
    add(total, units)
    with pytest.raises(ModelError, match="second is not finite") as caught:
        total.agree()
    assert caught.value.everywhere
    assert set(group.gather_objects(str(caught.value))) == {"second is not finite"}


def test_exponents_depend_on_data_only(group: Group) -> None:
    def exponents(ranks: Group) -> list[list[list[int]]]:
        total, found = make_sum(ranks), []
        for step in range(4):
            units = make_units(8, seed=step, scale=10.0 ** (5 * step - 8))
            for tensors, _ in units:
                tensors[2].mul_(step % 2)  # zero every other step: no history from that
            summed(total, units[ranks.rank :: ranks.size], 1)
            total.commit()
            total.reset()
            found.append(exponents_of(total))
        return found

    mine = exponents(group)
    with alone(group) as single:
        assert mine == exponents(single)
    assert mine[0][2] == [DEFAULT_EXPONENT]
    assert mine[1][2] == mine[2][2] != mine[3][2]


def test_a_block_has_its_own_exponent_and_without_history_the_coarsest_of_its_tensor(group: Group) -> None:
    """Four blocks: large, small, never used, and the ragged rest."""
    numel = 3 * BLOCK_NUMEL + 5
    total = make_sum(group, shapes=[(5,), (numel,)])
    values = torch.zeros(numel)
    values[3], values[BLOCK_NUMEL + 1], values[-1] = 1000.0, 1e-6, -1.0
    while True:
        total.add(1, values, 1)
        if total.agree():
            break
        begin_again(total)
    total.commit()
    total.reset()
    target = target_bits(8, torch.float32)
    exponents = exponents_of(total)
    assert exponents == [[DEFAULT_EXPONENT], [target - 10, target + 19, target - 10, target - 1]]
    other = make_sum(group, shapes=[(5,), (numel,)])
    other.load_exponents(total.exponents())
    assert exponents_of(other) == exponents
    other.add(1, values, 1)
    assert other.agree()
    other.finish(group.size)
    assert torch.allclose(other.mean(1), values, rtol=2.0**-24, atol=0)


def test_a_block_that_outgrows_its_exponent_is_redone_alone(group: Group) -> None:
    total = make_sum(group, shapes=[(2 * BLOCK_NUMEL,)])
    values = torch.ones(2 * BLOCK_NUMEL)
    total.add(0, values, 1)
    assert total.agree()
    total.commit()
    total.reset()
    before = exponents_of(total)[0]
    values[BLOCK_NUMEL:] = 2.0**50
    total.add(0, values, 1)
    assert not total.agree()
    total.drop()
    after = exponents_of(total)[0]
    assert after[0] == before[0]
    assert after[1] == before[1] - 50


def test_a_tensor_that_no_rank_added_is_absent(group: Group) -> None:
    total = make_sum(group)
    if group.rank == group.size - 1:
        total.add(2, torch.zeros(1), 1)
    assert total.agree()
    assert [total.present(index) for index in range(3)] == [False, False, True]


def test_exponents_of_another_model_are_refused(group: Group) -> None:
    total = make_sum(group)
    exponents = total.exponents()
    with pytest.raises(CheckpointError, match="'fourth'"):
        total.load_exponents({**exponents, "fourth": exponents["first"]})
    longer = make_sum(group, shapes=[(5,), (300,), (1,)]).exponents()
    with pytest.raises(CheckpointError, match="'second'"):
        total.load_exponents(longer)
    with pytest.raises(CheckpointError, match="cannot be read"):
        total.load_exponents({**exponents, "second": "AAAA"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 997])
@pytest.mark.parametrize("scale", [1.0, 2.0**40, 2.0**-3])
@pytest.mark.parametrize("weight", [1, 3])
def test_the_path_of_gpus_adds_the_same_integers(dtype: torch.dtype, size: int, scale: float, weight: int) -> None:
    generator = torch.Generator().manual_seed(size)
    values = torch.randn(size, generator=generator, dtype=dtype) * 2.0**10
    values[:1] = 2.5 / scale
    values[256:512] = 0
    one = torch.randint(-(2**60), 2**60, (size,), generator=generator)
    other = one.clone()
    blocks = -(-size // BLOCK_NUMEL)
    scales = scale * np.exp2(np.arange(blocks, dtype=float))
    found = [np.full(blocks, ZERO, np.int32) for _ in range(2)]
    accumulate(values.numpy(), scales, weight, one.numpy(), found[0])
    accumulate_in_torch(values, scales, weight, other, found[1])
    assert torch.equal(one, other)
    np.testing.assert_array_equal(*found)


def test_the_path_of_gpus_tells_what_is_not_finite() -> None:
    for values, wanted in (([1.0, -math.inf, 0], INFINITE), ([math.nan, math.inf, 0], NOT_A_NUMBER)):
        magnitudes = np.full(1, ZERO, np.int32)
        accumulate_in_torch(torch.tensor(values), np.ones(1), 1, torch.zeros(3, dtype=torch.int64), magnitudes)
        assert magnitudes[0] == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_terms(group: Group, dtype: torch.dtype) -> None:
    total = ExactSum([Term("half", 4)], 2, AllReduce(group), CPU)
    values = torch.tensor([1.5, -0.125, 0, 3], dtype=dtype)
    total.add(0, values, 3)
    assert total.agree()
    total.finish(3 * group.size)
    assert torch.equal(total.mean(0), values.float())


def test_layouts_of_memory_do_not_matter(group: Group) -> None:
    values = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for laid in (
        values,
        values.to(memory_format=torch.channels_last),
        values.transpose(0, 3).contiguous().transpose(0, 3),
    ):
        total = ExactSum([Term("weights", values.numel())], 1, AllReduce(group), CPU)
        if group.rank == 0:
            total.add(0, laid, 1)
        assert total.agree()
        total.finish(1)
        found.append(total.mean(0).clone())
        np.testing.assert_allclose(found[-1].numpy(), values.reshape(-1).numpy(), rtol=0, atol=2.0**-38)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("scale", [2.0**-30, 2.0**-60, 2.0**-100])
def test_tiny_terms_without_history_are_as_good_as_large_ones(group: Group, scale: float) -> None:
    units = make_units(5, seed=3)
    weight = sum(unit_weight for _, unit_weight in units)
    mine = units[group.rank :: group.size]
    large, tiny = make_sum(group), make_sum(group)
    expected = summed(large, mine, weight)
    shrunk = [([scale * values for values in tensors], unit_weight) for tensors, unit_weight in mine]
    add(tiny, shrunk)
    assert not tiny.agree()  # coarse under the default exponent
    begin_again(tiny)
    found = summed(tiny, shrunk, weight)
    for one, other in zip(expected, found, strict=True):
        # Scaled by a power of two, so all but the last bits are the same.
        np.testing.assert_allclose(
            np.frombuffer(other, np.float32), scale * np.frombuffer(one, np.float32), rtol=1e-6, atol=1e-8 * scale
        )


def test_terms_of_nothing_but_zeros_ask_for_no_other_pass(group: Group) -> None:
    total = make_sum(group)
    add(total, [([torch.zeros(shape) for shape in SHAPES], 3)])
    assert total.agree()


def test_after_a_death_units_are_added_under_the_exponents_of_those_that_stay(group: Group) -> None:
    total = make_sum(group)
    add(total, make_units(2, scale=1e9))
    before = exponents_of(total)
    assert not total.agree()
    total.drop()
    assert exponents_of(total) != before
    total.rebuild()  # somebody has died before all agreed to compute the step again: its units are still there
    assert exponents_of(total) == before
