"""The gradients of a step under the exact sum, and the shape that both sums share."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvol.kernels import fixed_point
from hpcvol.strategies.layout import Layout
from hpcvol.torch.exact import ExactSum, Term
from hpcvol.torch.readiness import in_one_order


class Gradients(Protocol):
    """How a step's gradients are gathered: exactly (`ExactGradients`) or in floating point (`FloatGradients`).

    A step is `reset`, then `prepare` and `backward` for each unit, `agree`, `finish` (`drop` where `agree` is false),
    and after the optimizer `commit`. Where a member dies before that: `rebuild`, and units that it had are computed by
    others (all units after `reset` where they are not `separate`), then `agree` and so on.
    """

    layouts: list[tuple[list[int], Layout]]
    """Which parameters' gradients are summed together, and where they lie."""

    separate: bool
    """Whether units are computed, and stay good, one by one; else a worker's units may be computed in one pass."""

    unused: frozenset[int]
    """Places of parameters that no member has used in a step: what they hold is left over from steps before."""

    def reset(self) -> None:
        """Forget all units of the step."""

    def prepare(self) -> None:
        """Make the parameters ready for one unit's backward pass."""

    def backward(self, loss: torch.Tensor, weight: int, *, last: bool) -> None:
        """Differentiate one unit's mean loss and take in `weight` times its gradient.

        Args:
            loss: one element.
            weight: > 0.
            last: whether this is the worker's last unit, so that buckets may be combined while it runs.
        """

    def tell(self) -> bytes:
        """Return what all members have to know for `agree`; it travels with the records of the step. Local."""

    def agree(self, told: Sequence[bytes]) -> bool:
        """Collective: False if all units must be computed again.

        Args:
            told: what `tell` returned on each member.
        """

    def drop(self) -> None:
        """Collective: the step is computed again, or given up."""

    def finish(self, weight: int) -> None:
        """Collective: leave Σ weight·gradient / Σ weight in `parameter.grad`, None where no unit used a parameter."""

    def rebuild(self) -> None:
        """Collective: sum over the members that there are now."""

    def commit(self) -> None:
        """The optimizer has used the gradients."""

    def close(self) -> None:
        """Let the parameters go: another run may train them."""


class ExactGradients:
    """Gradients summed in fixed point, one term a parameter.

    A gradient is added to the sum, and freed, as soon as autograd has it, while it is in the cache. Memory a parameter
    of 4 bytes: 8 for the sum, 4 for the mean, and the gradients that autograd holds at one time.

    Args:
        parameters: names and parameters that require a gradient, in an order that is the same on every member.
        make_sum: makes the exact sum of terms whose means are of a dtype. Collective.
    """

    separate = True
    unused: frozenset[int] = frozenset()  # what nobody uses has no gradient

    def __init__(
        self,
        parameters: Sequence[tuple[str, torch.nn.Parameter]],
        make_sum: Callable[[Sequence[Term], torch.dtype], ExactSum],
    ) -> None:
        self._parameters = [parameter for _, parameter in parameters]
        self._weight = 0
        by_dtype: dict[torch.dtype, list[int]] = {}
        for i, parameter in enumerate(self._parameters):
            dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
            by_dtype.setdefault(dtype, []).append(i)
        self.sums: list[ExactSum] = []
        self._places: dict[int, tuple[ExactSum, int]] = {}
        ordered: list[tuple[list[int], Layout, Callable[[int], None]]] = []
        for dtype, indices in by_dtype.items():
            terms = [Term(f"gradient {parameters[i][0]}", parameters[i][1].numel()) for i in indices]
            total = make_sum(terms, dtype)
            self.sums.append(total)
            self._places |= {i: (total, place) for place, i in enumerate(indices)}
            ordered.append((indices, total.layout, total.push))
        self.layouts = [(indices, layout) for indices, layout, _ in ordered]
        self._readiness = in_one_order([name for name, _ in parameters], ordered)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._take, i))  # type: ignore[no-untyped-call]
            for i, parameter in enumerate(self._parameters)
        ]

    def reset(self) -> None:
        """Forget all units of the step."""
        for total in self.sums:
            total.reset()
        self._readiness.begin_step()

    def prepare(self) -> None:
        """Drop gradients, so that autograd hands over its own memory instead of adding to ours."""
        for parameter in self._parameters:
            parameter.grad = None

    def backward(self, loss: torch.Tensor, weight: int, *, last: bool) -> None:
        """Differentiate one unit's loss; add its gradients, rounded once."""
        self._readiness.begin_pass(last=last)
        self._weight = weight
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._weight = 0
        self._readiness.end_pass()

    def tell(self) -> bytes:
        """Return nothing: members learn all from the sums."""
        return b""

    def agree(self, told: Sequence[bytes]) -> bool:
        """Collective: False if a term overflowed and all units must be computed again."""
        del told
        self._readiness.push_rest()
        return all([total.agree() for total in self.sums])

    def drop(self) -> None:
        """Collective: the step is computed again, or given up."""
        self._readiness.push_rest()
        for total in self.sums:
            total.drop()

    def finish(self, weight: int) -> None:
        """Collective: leave the mean in `parameter.grad`, rounded once to its dtype."""
        for total in self.sums:
            total.finish(weight)
        self.hand_over()

    def hand_over(self) -> None:
        """Leave the mean in `parameter.grad` once more: units were computed since `finish`. Local."""
        self._readiness.begin_step()
        for i, parameter in enumerate(self._parameters):
            total, place = self._places[i]
            mean = total.mean(place).view(parameter.shape)
            parameter.grad = mean.to(parameter.dtype) if total.present(place) else None

    def rebuild(self) -> None:
        """Sum over the members that there are now; units that this one has computed stay. Collective."""
        for total in self.sums:
            total.rebuild()
        self._readiness.begin_step()

    def commit(self) -> None:
        """Let the next step's exponents follow from this one."""
        for total in self.sums:
            total.commit()

    def close(self) -> None:
        """Let the parameters go."""
        for hook in self._hooks:
            hook.remove()

    def exponents(self) -> dict[str, str]:
        """Return the exponents of every term by name, packed."""
        return {name: exponent for total in self.sums for name, exponent in total.exponents().items()}

    def load_exponents(self, exponents: Mapping[str, str]) -> None:
        """Take up exponents from a checkpoint.

        Raises:
            CheckpointError: the names are not those of this model.
        """
        known = self.exponents()
        foreign = {name: exponent for name, exponent in exponents.items() if name not in known}
        for total in self.sums:
            mine = {name: exponents[name] for name in total.exponents() if name in exponents}
            total.load_exponents(mine | foreign)

    def _take(self, index: int, parameter: torch.Tensor) -> None:
        """Autograd's hook: `parameter.grad` is the unit's gradient. Outside of a unit's pass it is not ours."""
        if self._weight and parameter.grad is not None:
            total, place = self._places[index]
            total.add(place, parameter.grad, self._weight)
            parameter.grad = None
            self._readiness.arrived(index)


def gradient_norm(parameters: Sequence[torch.nn.Parameter]) -> float:
    """Return the 2-norm of all gradients, in double: the same bits however they are shared out. Local."""
    squares = [squares_of(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return norm_of(squares)


def norm_of(squares: Iterable[NDArray[np.float64]]) -> float:
    """Return the root of the sum of what `squares_of` returned of all gradients, which is exact. Local."""
    return math.sqrt(math.fsum(itertools.chain.from_iterable(squares)))


def clip(parameters: Sequence[torch.nn.Parameter], norm: float, limit: float) -> None:
    """Scale all gradients by limit / norm where norm exceeds limit, in place. Local.

    References:
        Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1.
    """
    if norm > limit:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(limit / norm)


def squares_of(gradient: torch.Tensor) -> NDArray[np.float64]:
    """Return the sums of squares of every GRAIN_NUMEL neighbouring elements, each in one fixed order. Local."""
    numel = -(-gradient.numel() // fixed_point.GRAIN_NUMEL)
    if gradient.device.type == "cpu" and gradient.dtype in (torch.float32, torch.float64):
        squares = np.empty(numel)
        fixed_point.sums_of_squares(gradient.contiguous().view(-1).numpy(), squares)
        return squares
    squared = gradient.double().square().view(-1)
    padded = torch.nn.functional.pad(squared, (0, numel * fixed_point.GRAIN_NUMEL - squared.numel()))
    found: NDArray[np.float64] = padded.view(numel, fixed_point.GRAIN_NUMEL).sum(1).cpu().numpy()
    return found
