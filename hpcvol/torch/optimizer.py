"""`DistributedOptimizer`: averaged gradients for a training loop that cannot change."""

from collections.abc import Callable
from typing import Any

import torch

from hpcvol.collectives import Algorithm
from hpcvol.comm import start as start_mpi
from hpcvol.errors import ConfigError
from hpcvol.guarantees import require
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.torch.float_sum import FloatGradients
from hpcvol.torch.staging import broadcast_tensor


class DistributedOptimizer(torch.optim.Optimizer):
    """Wraps an optimizer: `step()` averages gradients over all ranks in floating point first.

    This is the plain synchronous path, for loops that cannot become `for step in run.steps()`. Each rank sees its own
    data, in equal portions; whoever dies ends the run; weights depend on the number of ranks in their last bits.
    It is an `Optimizer` for schedules and the like; state, parameter groups and all else are the wrapped one's.

    Gradients are views of memory that the ranks share, and change with the next step: clone what is to be kept. Before
    `step` (or `synchronize`) they are this rank's own, so what has to see the averages (clipping, unscaling by a
    `torch.amp.GradScaler`) comes after `synchronize`.

    Args:
        optimizer: all parameters on one device; every rank gets rank 0's at construction. Collective.
        sum: "float". The exact sum needs to know the units of a step, which only `hpcvol.start` does.
        algorithm: as for `hpcvol.collectives.allreduce`.

    Raises:
        ConfigError: `sum="exact"`, or no parameter requires a gradient.
    """

    # A fused optimizer would take a GradScaler's scale from itself, while the scaler writes it here.
    _step_supports_amp_scaling = False

    def __init__(self, optimizer: torch.optim.Optimizer, *, sum: str = "float", algorithm: Algorithm = "auto") -> None:
        require("optimizer", sum)
        # Not super().__init__(): it would make state and parameter groups of our own.
        self._optimizer = optimizer
        parameters = [parameter for parts in optimizer.param_groups for parameter in parts["params"]]
        trained = [(f"number {i}", p) for i, p in enumerate(parameters) if p.requires_grad]
        if not trained:
            raise ConfigError("DistributedOptimizer: the optimizer has no parameter that requires a gradient")
        group = start_mpi()
        for parameter in parameters:
            broadcast_tensor(group, parameter)
        self._group = group
        self._gradients = FloatGradients(trained, AllReduce(group, algorithm), trained[0][1].device)
        self._gradients.reset()

    def synchronize(self) -> None:
        """Average gradients over ranks now, so that the loop can look at and change the averages. Collective.

        `step` then takes them as they are, unless another backward pass comes between.

        Example:
            >>> optimizer.synchronize()  # doctest: +SKIP
            >>> torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # doctest: +SKIP
            >>> optimizer.step()  # doctest: +SKIP
        """
        self._gradients.take_over()
        self._gradients.agree(self._group.gather_objects(self._gradients.tell()))
        self._gradients.finish(self._group.size)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Average gradients over ranks, unless `synchronize` has, and apply the optimizer. Collective.

        Raises:
            ConfigError: a closure, which would compute gradients that no rank has averaged.
        """
        if closure is not None:
            raise ConfigError("DistributedOptimizer.step() takes no closure: call backward() first, then step()")
        if not self._gradients.finished:
            self.synchronize()
        self._gradients.commit()
        return self._optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients; the next are copied to where they are summed, so `set_to_none` makes no difference."""
        del set_to_none
        self._gradients.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state. Local."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state, the same on every rank. Local."""
        self._optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: gradients of parameters that come later would not be averaged.

        Raises:
            ConfigError: always.
        """
        del param_group
        raise ConfigError(
            "DistributedOptimizer.add_param_group(): add all parameters to the optimizer first, then wrap it"
        )

    def __getattr__(self, name: str) -> Any:
        if name == "_optimizer":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self._optimizer, name)
