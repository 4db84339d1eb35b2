"""Units computed by two members: who is wrong is named, whoever it is, and nobody else ever is."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch
from training import NoisyClassifier, alone, built, make_run, outcome, sentences, train

from hpcvol.comm import Group
from hpcvol.errors import ConfigError, MemberError
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.verified_exact import VerifiedExact
from hpcvol.torch.outputs import read_output
from hpcvol.torch.run import Run
from hpcvol.torch.settings import Settings

STEPS = 3


def settings(share: float = 1.0) -> Settings:
    return Settings(12, 3, verify_share=share)


def with_norm() -> Any:
    """A model with a buffer that units change, so that there are two sums."""

    class Normed(NoisyClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(5)

    return built(Normed)


@pytest.mark.limit_seconds(120)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_honest_members_are_never_expelled(group: Group, share: float) -> None:
    with closing(make_run(group, with_norm(), sentences(30), settings(share))) as run:
        verified = outcome(run, train(run, STEPS))
    with alone(group) as single, closing(make_run(single, with_norm(), sentences(30), settings(0))) as run:
        assert outcome(run, train(run, STEPS)) == verified


def lie_about_gradients(run: Run) -> None:
    """Compute units wrongly, by one bit of the largest element, once the probe is over."""

    def flip(gradient: torch.Tensor) -> torch.Tensor:
        if run.step == 0:
            return gradient
        other = gradient.clone()
        other.view(-1).view(torch.int32)[int(other.abs().argmax())] ^= 1 << 12  # some gradients are zero
        return other

    next(run.model.parameters()).register_hook(flip)  # type: ignore[no-untyped-call]


def add_another_gradient(run: Run) -> None:
    """Show what was computed, and add something else."""
    reducer: Any = run.gradients.sums[0].reducer  # type: ignore[attr-defined]
    finish = reducer.finish

    def lying(*args: Any) -> None:
        reducer.totals[3] += 2**20
        finish(*args)

    reducer.finish = lying


def adapt_what_is_shown(run: Run) -> None:
    """Seal what was computed, add something else, and show the fingerprints of what was added."""
    reducer: Any = run.gradients.sums[0].reducer  # type: ignore[attr-defined]
    finish = reducer.finish

    def lying(*args: Any) -> None:
        reducer.totals[3] += 2**20
        assert run.verification is not None
        next(iter(run.verification._units.values()))[0][3] += 2**20
        finish(*args)

    reducer.finish = lying


def add_what_no_fingerprint_sees(run: Run) -> None:
    """Flip the highest bits of two elements: their weights in a fingerprint are 2^63 each, and cancel."""
    reducer: Any = run.gradients.sums[0].reducer  # type: ignore[attr-defined]
    finish = reducer.finish

    def lying(*args: Any) -> None:
        reducer.totals[3:5] ^= -(2**63)
        finish(*args)

    reducer.finish = lying


def vote_twice(run: Run) -> None:
    """Report on a unit that somebody else was asked for."""
    verification: Any = run.verification
    compare = verification._compare

    def lying(failure: Exception | None) -> Any:
        other = next(unit for unit, who in verification._checkers.items() if who != run.member)
        verification._mine.append((other, "another gradient"))
        return compare(failure)

    verification._compare = lying


def check_nothing(run: Run) -> None:
    """Report nothing of the units that this member was asked for: of three or four units one is due in some step."""
    verification: Any = run.verification
    compare = verification._compare

    def lying(failure: Exception | None) -> Any:
        verification._mine.clear()
        return compare(failure)

    verification._compare = lying


LIES: list[tuple[Callable[[Run], None], str]] = [
    (lie_about_gradients, "two others come to another gradient of unit"),
    (adapt_what_is_shown, "two others come to another gradient of unit"),
    (add_another_gradient, "what it added to the sum is not what it had shown"),
    (add_what_no_fingerprint_sees, "what it added to the sum is larger than a step's units can be"),
    (vote_twice, "it did not report the checks that it was asked for"),
    (check_nothing, "it did not report the checks that it was asked for"),
]


@pytest.mark.limit_seconds(120)
@pytest.mark.parametrize("liar", [0, 2])
@pytest.mark.parametrize(("lie", "words"), LIES)
def test_who_lies_is_named(group: Group, lie: Callable[[Run], None], words: str, liar: int) -> None:
    if group.size < 3:
        pytest.skip("a third decides")
    with closing(make_run(group, with_norm(), sentences(30), settings())) as run:
        run.membership.survives = False
        if group.rank == liar:
            lie(run)
        with pytest.raises(MemberError, match=f"member {run.group.members[liar]} .* is not to be trusted: .*{words}"):
            train(run, 12 if lie is check_nothing else STEPS)
        assert run.step <= 1 or lie is check_nothing


def test_two_that_disagree_are_both_named(group: Group) -> None:
    if group.size != 2:
        pytest.skip("two")
    with closing(make_run(group, built(NoisyClassifier), sentences(30), settings())) as run:
        if group.rank == 1:
            lie_about_gradients(run)
        with pytest.raises(MemberError, match=r"member \d.* and member \d.* come to different gradients"):
            train(run, STEPS)
        assert run.step == 1


def test_a_sum_that_was_handed_on_wrongly(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    if group.size < 3:
        pytest.skip("most members have to have the right one")
    with closing(make_run(group, built(NoisyClassifier), sentences(30), settings())) as run:
        run.membership.survives = False
        liar = group.size - 1
        summed = VerifiedExact.received
        if group.rank == liar:
            monkeypatch.setattr(VerifiedExact, "received", lambda self, key: [one + 1 for one in summed(self, key)])
        with pytest.raises(MemberError, match=f"member {run.group.members[liar]} .*the sum that it handed on"):
            train(run, STEPS)


def test_without_a_share_nothing_is_different(group: Group) -> None:
    with closing(make_run(group, built(NoisyClassifier), sentences(30), settings(0))) as run:
        assert run.verification is None
        assert type(run.strategy) is AllReduce
        assert not isinstance(run.gradients.sums[0].reducer, VerifiedExact)  # type: ignore[attr-defined]


def test_the_float_sum_cannot_be_verified() -> None:
    with pytest.raises(ConfigError, match=r'set train.sum = "exact"'):
        Settings(8, 2, sum="float", verify_share=0.1)
    with pytest.raises(ConfigError, match="expected a share of units from 0 to 1"):
        Settings(8, 2, verify_share=1.5)


def test_a_unit_that_nobody_reports_ends_the_run(group: Group) -> None:
    with closing(make_run(group, built(NoisyClassifier), sentences(30), settings(0))) as run:

        def leave_one_out() -> None:
            for step in run.steps(1):
                for unit in step:
                    output = read_output(run.model(**unit))
                    step.backward(output.loss, output.weight)
                    step._records.pop(0, None)

        with pytest.raises(MemberError, match=r"step 0: expected each of its \d+ units once"):
            leave_one_out()
