"""The float sum of a step: gradients live in flat buffers, which MPI sums as they are."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from hpcvol.strategies.allreduce import AllReduce
from hpcvol.torch.staging import Staging

_ALIGNMENT_NBYTES = 64


class FloatGradients:
    """Gradients of all parameters as views of one flat buffer a dtype, so that a sum over ranks copies nothing.

    Half-precision parameters are refused by MPI libraries, so their gradients are carried in float32.

    Args:
        parameters: those that require a gradient, in an order that is the same on every member.
        strategy: combines vectors over ranks.
        device: where gradients are.
    """

    merges_units = True

    def __init__(self, parameters: Sequence[torch.nn.Parameter], strategy: AllReduce, device: torch.device) -> None:
        self._parameters = list(parameters)
        self._strategy = strategy
        sizes: dict[torch.dtype, int] = {}
        places = []
        for parameter in self._parameters:
            dtype = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
            start = sizes.get(dtype, 0)
            per_line = _ALIGNMENT_NBYTES // dtype.itemsize
            sizes[dtype] = start + -(-parameter.numel() // per_line) * per_line
            places.append((dtype, start))
        self._flats = {dtype: torch.zeros(size, dtype=dtype, device=device) for dtype, size in sizes.items()}
        self._staging = [Staging(flat) for flat in self._flats.values()]
        self._views = [
            self._flats[dtype][start : start + parameter.numel()].view(parameter.shape)
            for parameter, (dtype, start) in zip(self._parameters, places, strict=True)
        ]
        self._used = np.zeros(len(self._parameters), np.int32)
        for i, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._mark_used, i))  # type: ignore[no-untyped-call]

    def reset(self) -> None:
        """Zero the gradients and let autograd add into the flat buffers."""
        for flat in self._flats.values():
            flat.zero_()
        self._used.fill(0)
        self.attach()

    def attach(self) -> None:
        """Make the parameters' gradients the flat views again; half-precision ones start at None."""
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view if view.dtype == parameter.dtype else None

    def prepare(self) -> None:
        """Nothing: backward adds to the flat views."""

    def backward(self, loss: torch.Tensor, weight: int) -> None:
        """Differentiate weight · loss into the flat buffers."""
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        self.collect()

    def collect(self) -> None:
        """Add to the flat buffers what backward left outside them: half precision, and after a user's zero_grad()."""
        for parameter, view in zip(self._parameters, self._views, strict=True):
            gradient = parameter.grad
            if gradient is not None and gradient is not view:
                view.add_(gradient.to_dense() if gradient.layout != torch.strided else gradient)
        self.attach()

    def take_over(self) -> None:
        """Collect after backward passes of a loop that zeroes gradients in ways of its own.

        A gradient that is no longer the flat view was dropped since, by `model.zero_grad()` say: what the view holds is
        of an earlier step.
        """
        for i, (parameter, view) in enumerate(zip(self._parameters, self._views, strict=True)):
            if parameter.grad is not view:
                view.zero_()
                self._used[i] = parameter.grad is not None
        self.collect()

    def agree(self) -> bool:
        """Collective: learn which parameters any worker used. Floating point never asks for another pass."""
        self._strategy.max(self._used)
        return True

    def reduce(self) -> None:
        """Sum gradients over all ranks. Collective, in place."""
        for staging in self._staging:
            staging.apply(self._strategy.sum)

    def finish(self, weight: int) -> None:
        """Divide the summed gradients by Σ weight and leave them in the parameters; None where no worker used one."""
        for flat in self._flats.values():
            flat.div_(float(weight))
        for parameter, view, used in zip(self._parameters, self._views, self._used, strict=True):
            gradient = view if view.dtype == parameter.dtype else view.to(parameter.dtype)
            parameter.grad = gradient if used else None

    def commit(self) -> None:
        """Nothing follows from a committed step."""

    def _mark_used(self, index: int, _: torch.Tensor) -> None:
        self._used[index] = 1
