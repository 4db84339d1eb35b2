"""Reading what a model returned: a scalar loss, or a mapping with `loss`, optionally `weight`, and further scalars."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hpcvol.errors import ModelError


@dataclass(frozen=True)
class Output:
    """A unit's mean loss, what it was taken over (None: its samples), and its metrics (means over the same)."""

    loss: torch.Tensor
    weight: int | None
    metrics: dict[str, float]


def read_output(output: Any) -> Output:
    """Return the loss, weight and metrics in a model's output.

    Args:
        output: a scalar tensor; or a mapping (a dict, or the output of a Hugging Face model) whose `loss` is a scalar
            tensor, whose `weight` is an integer, and whose other scalars are metrics. Other entries are left alone.

    Raises:
        ModelError: no scalar loss in it.
    """
    if isinstance(output, torch.Tensor):
        return Output(scalar_loss(output), None, {})
    if not isinstance(output, Mapping) or not isinstance(output.get("loss"), torch.Tensor):
        raise ModelError(
            f"the model returned a {type(output).__name__}: expected a scalar loss, or a mapping with a scalar "
            "tensor `loss`"
        )
    weight = output.get("weight")
    metrics = {
        name: scalar(value) for name, value in output.items() if name not in ("loss", "weight") and _is_scalar(value)
    }
    return Output(scalar_loss(output["loss"]), None if weight is None else integer_weight(weight), metrics)


def scalar_loss(loss: Any) -> torch.Tensor:
    """Return `loss` if it is a tensor of one element.

    Raises:
        ModelError: it is not.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        found = (
            f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
        )
        raise ModelError(f"the loss is {found}: expected the mean over the unit, a tensor with one element")
    return loss


def integer_weight(weight: Any) -> int:
    """Return a unit's weight as an integer.

    Raises:
        ModelError: it is not a whole number from 0 to 2^29 - 1.
    """
    try:
        number = scalar(weight)
    except (TypeError, ValueError, RuntimeError):
        number = -1.0
    if not (0 <= number < 2**29 and number.is_integer()):
        raise ModelError(
            f"a unit's weight is {weight!r}: expected a whole number below 2^29, what its mean loss was taken over"
        )
    return int(number)


def scalar(value: Any) -> float:
    """Return a number, or a tensor of one element, as a float that has no gradient."""
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)
