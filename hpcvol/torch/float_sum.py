"""The float sum of a step: gradients live in flat buffers, which are summed as they are."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.encoded_floats import matrices_of
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.reducer import FloatReducer
from hpcvol.torch.readiness import in_one_order

_NUMPY: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


class FloatGradients:
    """Gradients of all parameters as views of one flat buffer a dtype, so that a sum over ranks copies nothing.

    A parameter's first gradient of a step is copied to its view while it is in the cache, further ones are added there.
    Half-precision parameters are summed in float32.

    Args:
        parameters: names and parameters that require a gradient, in an order that is the same on every member.
        strategy: combines vectors over ranks.
        device: where gradients are.

    Attributes:
        finished: whether parameters hold the sum over members, and no backward pass has come since.
        feedbacks: what this member has not sent yet, by dtype; none where gradients are not encoded.
        unused: as `hpcvol.torch.gradients.Gradients`.
        weight: that this member's gradients have been multiplied by, in all, the pass that is under way included.
    """

    separate = False

    def __init__(
        self, parameters: Sequence[tuple[str, torch.nn.Parameter]], strategy: AllReduce, device: torch.device
    ) -> None:
        self._parameters = [parameter for _, parameter in parameters]
        self._used = np.zeros(len(parameters), np.uint8)
        self._in_step = False
        self.weight = 0
        self.finished = False
        self.unused: frozenset[int] = frozenset()
        by_dtype: dict[torch.dtype, list[int]] = {}
        for i, parameter in enumerate(self._parameters):
            by_dtype.setdefault(summed_in(parameter), []).append(i)
        self._flats = [
            FlatSum([parameters[i] for i in indices], dtype, strategy, device) for dtype, indices in by_dtype.items()
        ]
        self.layouts = [(indices, flat.layout) for indices, flat in zip(by_dtype.values(), self._flats, strict=True)]
        self.feedbacks = {flat.dtype_name: flat.feedback for flat in self._flats if flat.feedback is not None}
        places = {
            i: (flat, place)
            for flat, indices in zip(self._flats, by_dtype.values(), strict=True)
            for place, i in enumerate(indices)
        }
        self._views = [flat.view(place) for flat, place in (places[i] for i in range(len(parameters)))]
        self._readiness = in_one_order(
            [name for name, _ in parameters],
            [(indices, flat.layout, flat.push) for flat, indices in zip(self._flats, by_dtype.values(), strict=True)],
        )
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._take, i))  # type: ignore[no-untyped-call]
            for i, parameter in enumerate(self._parameters)
        ]

    def reset(self) -> None:
        """Forget the gradients of the step before."""
        self.finished = False
        self.weight = 0
        self._used.fill(0)
        self._readiness.begin_step()
        for parameter in self._parameters:
            parameter.grad = None

    def prepare(self) -> None:
        """Nothing: what a unit adds to is known by `_used`."""

    def backward(self, loss: torch.Tensor, weight: int, *, last: bool) -> None:
        """Differentiate weight · loss into the flat buffers."""
        self._readiness.begin_pass(last=last)
        self.weight += weight
        self._in_step = True
        try:
            (loss * weight).backward()  # type: ignore[no-untyped-call]
        finally:
            self._in_step = False
        self._readiness.end_pass()

    def take_over(self) -> None:
        """Take what the parameters hold as the step's gradients, after backward passes of a loop of its own."""
        self.weight = 1
        self._readiness.begin_step()  # loops have other ways to zero gradients than `reset`
        for i, parameter in enumerate(self._parameters):
            self._used[i] = parameter.grad is not None
            self._keep(i)

    def tell(self) -> bytes:
        """Return which parameters this worker has used, a byte each."""
        return self._used.tobytes()

    def agree(self, told: Sequence[bytes]) -> bool:
        """Learn which parameters any worker used. Floating point never asks for another pass. Local."""
        for view, used in zip(self._views, self._used, strict=True):
            if not used:
                view.zero_()
        self._readiness.push_rest()
        np.max([np.frombuffer(used, np.uint8) for used in told], axis=0, out=self._used)
        return True

    def drop(self) -> None:
        """Collective: the step is given up."""
        self._readiness.push_rest()
        for flat in self._flats:
            flat.drop()

    def finish(self, weight: int) -> None:
        """Leave Σ gradients / Σ weight in the parameters; None where no worker used one. Collective."""
        for flat in self._flats:
            flat.finish(weight, self.weight)
        for parameter, view, used in zip(self._parameters, self._views, self._used, strict=True):
            gradient = view if view.dtype == parameter.dtype else view.to(parameter.dtype)
            # Of one that nobody used there may be something left from steps before.
            parameter.grad = gradient if used or (self.feedbacks and bool(view.any())) else None
        self.unused = frozenset(np.flatnonzero(self._used == 0).tolist())
        self.finished = True

    def rebuild(self) -> None:
        """Sum over the members that there are now; units have to be computed again. Collective."""
        for flat in self._flats:
            flat.rebuild()

    def commit(self) -> None:
        """The next step sums anew, and begins from what this one has not sent."""
        self.finished = False
        for feedback in self.feedbacks.values():
            feedback.commit()

    def close(self) -> None:
        """Let the parameters go."""
        for hook in self._hooks:
            hook.remove()

    def _take(self, index: int, parameter: torch.Tensor) -> None:
        """Autograd's hook: `parameter.grad` is the pass's gradient, in a loop of its own all that it accumulated."""
        if not self._in_step:
            self.finished = False
            self._keep(index)
            return
        if parameter.grad is not None:
            (self._views[index].add_ if self._used[index] else self._views[index].copy_)(_dense(parameter.grad))
            parameter.grad = None  # until the step's end: what a loop does to gradients between passes loses nothing
        self._used[index] = 1
        self._readiness.arrived(index)

    def _keep(self, index: int) -> None:
        """Have the parameter's gradient in its view, and make it the view where dtypes agree."""
        parameter, view = self._parameters[index], self._views[index]
        if parameter.grad is not None and parameter.grad is not view:
            view.copy_(_dense(parameter.grad))
            if view.dtype == parameter.dtype:
                parameter.grad = view


class FlatSum:
    """Tensors of one dtype in one flat buffer, and what sums it over ranks.

    Args:
        parameters: names and parameters.
        dtype: that they are summed in.
        strategy: sums.
        device: where they are.

    Attributes:
        layout: where each lies.
        dtype_name: NumPy's name of the dtype.
        feedback: what this member has not sent; None where nothing is encoded.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, torch.nn.Parameter]],
        dtype: torch.dtype,
        strategy: AllReduce,
        device: torch.device,
    ) -> None:
        self._shapes = [parameter.shape for _, parameter in parameters]
        self.layout = Layout.of([p.numel() for _, p in parameters], strategy.bucket_nbytes // dtype.itemsize)
        self._strategy = strategy
        self._memory = Memory(self.layout.numel, _NUMPY[dtype])
        self.dtype_name = self._memory.dtype.name
        self._gaps = list(self.layout.gaps())
        shapes = zip(self.layout.starts, self._shapes, strict=True)
        self._matrices = matrices_of([(start, tuple(shape)) for start, shape in shapes])
        self.feedback = strategy.feedback(self.layout.numel, self._memory.dtype)
        self._reducer = self._make_reducer()
        host = torch.from_numpy(self._reducer.vector)
        self._on_cpu = device.type == "cpu"
        self._tensor = host if self._on_cpu else torch.zeros_like(host, device=device)

    def view(self, place: int) -> torch.Tensor:
        """Return one of the tensors, where it lies."""
        start = self.layout.starts[place]
        return self._tensor[start : start + self.layout.numels[place]].view(self._shapes[place])

    def rebuild(self) -> None:
        """Sum over the ranks that there are now. Collective."""
        self._reducer = self._make_reducer()

    def _make_reducer(self) -> FloatReducer:
        return self._strategy.floats(self.layout, self._memory, self.feedback, self._matrices)

    def drop(self) -> None:
        """Forget what was pushed. Collective."""
        if self._on_cpu:
            self._reducer.drop()

    def finish(self, weight: int, own: int) -> None:
        """Sum and divide, as `hpcvol.strategies.reducer.FloatReducer`. Collective; all buckets were pushed."""
        if not self._on_cpu:
            self._reducer.vector[:] = self._tensor.cpu().numpy()
            for bucket in range(len(self.layout.buckets)):
                self._reducer.push(bucket)
        if self.feedback is not None:
            for gap in self._gaps:  # codecs write there too, and would sum that up
                self._reducer.vector[gap] = 0
        self._reducer.finish(weight, own)
        if not self._on_cpu:
            self._tensor.copy_(torch.from_numpy(self._reducer.vector))

    def push(self, bucket: int) -> None:
        """Say that a bucket is final here. Local."""
        if self._on_cpu:
            self._reducer.push(bucket)


def summed_in(parameter: torch.nn.Parameter) -> torch.dtype:
    """Return in which dtype what is like a parameter is summed."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient if gradient.layout == torch.strided else gradient.to_dense()
