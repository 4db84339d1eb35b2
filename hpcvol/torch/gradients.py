"""The gradients of a step under the exact sum, and the shape that both sums share."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from hpcvol.kernels import fixed_point
from hpcvol.torch.exact import ExactSum, Term


class Gradients(Protocol):
    """How a step's gradients are gathered: exactly (`ExactGradients`) or in floating point (`FloatGradients`).

    A step is `reset`, then `prepare` and `backward` for each unit, `agree`, `reduce`, `finish`, and after the optimizer
    `commit`.
    """

    merges_units: bool
    """Whether a worker's units may be computed in one pass."""

    def reset(self) -> None:
        """Forget all units of the step."""

    def prepare(self) -> None:
        """Make the parameters ready for one unit's backward pass."""

    def backward(self, loss: torch.Tensor, weight: int) -> None:
        """Differentiate one unit's mean loss and take in `weight` times its gradient."""

    def agree(self) -> bool:
        """Collective: False if all units must be computed again."""

    def reduce(self) -> None:
        """Collective: sum over ranks."""

    def finish(self, weight: int) -> None:
        """Leave Σ weight·gradient / Σ weight in `parameter.grad`, None where no unit used a parameter."""

    def commit(self) -> None:
        """The optimizer has used the gradients."""


class ExactGradients:
    """Gradients summed in fixed point, one term a parameter.

    Memory a parameter of 4 bytes: 8 for the sum, 4 for the gradient of the unit at hand, which is freed before the mean
    takes its place.

    Args:
        parameters: names and parameters that require a gradient, in an order that is the same on every member.
        total: their sum, one term a parameter.
    """

    merges_units = False

    def __init__(self, parameters: Sequence[torch.nn.Parameter], total: ExactSum) -> None:
        self._parameters = list(parameters)
        self._total = total

    def reset(self) -> None:
        """Forget all units of the step."""
        self._total.reset()

    def prepare(self) -> None:
        """Drop gradients, so that autograd hands over its own memory instead of adding to ours."""
        for parameter in self._parameters:
            parameter.grad = None

    def backward(self, loss: torch.Tensor, weight: int) -> None:
        """Differentiate one unit's loss; add its gradients, rounded once."""
        loss.backward()  # type: ignore[no-untyped-call]
        for i, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                self._total.add(i, parameter.grad, weight)
                parameter.grad = None

    def agree(self) -> bool:
        """Collective: False if a term overflowed and all units must be computed again."""
        return self._total.agree()

    def reduce(self) -> None:
        """Collective: sum over ranks, in integers."""
        self._total.reduce()

    def finish(self, weight: int) -> None:
        """Leave the mean in `parameter.grad`, rounded once to its dtype."""
        for i, parameter in enumerate(self._parameters):
            if self._total.present(i):
                parameter.grad = torch.empty_like(parameter)
                self._total.mean(i, weight, parameter.grad)
            else:
                parameter.grad = None

    def commit(self) -> None:
        """Let the next step's exponents follow from this one."""
        self._total.commit()


def parameter_terms(parameters: Sequence[tuple[str, torch.nn.Parameter]]) -> list[Term]:
    """Return the parameters as terms of an exact sum."""
    return [Term(f"gradient {name}", parameter.numel()) for name, parameter in parameters]


def gradient_norm(parameters: Sequence[torch.nn.Parameter]) -> float:
    """Return the 2-norm of all gradients: squares in double, in one fixed order, summed without error. Local."""
    squares = [_sum_of_squares(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return math.sqrt(math.fsum(squares))


def clip(parameters: Sequence[torch.nn.Parameter], norm: float, limit: float) -> None:
    """Scale all gradients by limit / norm where norm exceeds limit, in place. Local.

    References:
        Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1.
    """
    if norm > limit:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(limit / norm)


def _sum_of_squares(gradient: torch.Tensor) -> float:
    if gradient.device.type == "cpu" and gradient.dtype in (torch.float32, torch.float64):
        return float(fixed_point.sum_of_squares(gradient.contiguous().view(-1).numpy()))
    return float(gradient.double().square().sum())
