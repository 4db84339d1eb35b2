"""`DistributedOptimizer`: averaged gradients for a training loop that cannot change."""

from collections.abc import Callable
from typing import Any

import torch

from hpcvol.collectives import Algorithm
from hpcvol.comm import start as start_mpi
from hpcvol.errors import ConfigError
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.torch.float_sum import FloatGradients
from hpcvol.torch.staging import broadcast_tensor


class DistributedOptimizer:
    """Wraps an optimizer: `step()` averages gradients over all ranks in floating point first.

    This is the plain synchronous path, for loops that cannot become `for step in run.steps()`. Each rank sees its own
    data, in equal portions; whoever dies ends the run; weights depend on the number of ranks in their last bits.
    Attributes that it does not have are those of the wrapped optimizer.

    Args:
        optimizer: all parameters on one device; every rank gets rank 0's at construction. Collective.
        sum: "float". The exact sum needs to know the units of a step, which only `hpcvol.start` does.
        algorithm: all-reduce algorithm: "auto", "ring" or "library".

    Raises:
        ConfigError: `sum="exact"`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, sum: str = "float", algorithm: Algorithm = "auto") -> None:
        if sum != "float":
            raise ConfigError(
                f'DistributedOptimizer(sum="{sum}"): it adds in floating point only, because the exact sum adds work '
                "units and "
                "this loop has none; use hpcvol.start() and `for unit in step`, which promise the same bits at any "
                "number of ranks"
            )
        self._optimizer = optimizer
        group = start_mpi()
        parameters = [parameter for parts in optimizer.param_groups for parameter in parts["params"]]
        for parameter in parameters:
            broadcast_tensor(group, parameter)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._size = group.size
        self._gradients = FloatGradients(trained, AllReduce(group, algorithm), trained[0].device)
        self._gradients.reset()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Average gradients over ranks and apply the optimizer. Collective.

        Raises:
            ConfigError: a closure, which would compute gradients that no rank has averaged.
        """
        if closure is not None:
            raise ConfigError("DistributedOptimizer.step() takes no closure: call backward() first, then step()")
        self._gradients.collect()
        self._gradients.agree()
        self._gradients.reduce()
        self._gradients.finish(self._size)
        return self._optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero all gradients; they stay in the flat buffers that are summed, so `set_to_none` makes no difference."""
        del set_to_none
        self._gradients.reset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)
