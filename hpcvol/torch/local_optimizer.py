"""What an optimizer keeps where each member, or each group of them, applies it by itself: apart, and as one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from hpcvol import tracing
from hpcvol.comm import Group
from hpcvol.strategies.shards import Shards
from hpcvol.torch.sharded_optimizer import Held, Place, State

Sum = Callable[[NDArray[Any]], None]

# An optimizer's count of steps is the same everywhere, or nearly.
_COUNT = "step"


class LocalOptimizer:
    """Stands where `ShardedOptimizer` does: servers only add up what is pushed, and workers have their own states.

    Args:
        optimizer: the user's, which a worker applies to all of its parameters.
        parameters: that require a gradient, in an order that is the same on every member.
        group: the members.
        sum: over them, in place, of a vector.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], group: Group, sum: Sum
    ) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self._group = group
        self._sum = sum
        self.held: Sequence[Held] = []

    def hold(self, pieces: Sequence[Held], states: Mapping[Place, State] | None = None) -> None:
        """Hold `pieces` from now on, which have no states. Local."""
        del states
        self.held = pieces

    @property
    def shards(self) -> set[int]:
        """The shards that the pieces are of."""
        return {piece.shard for piece in self.held}

    def take_loaded(self) -> None:
        """Nothing: the user's optimizer keeps its state."""

    def hyperparameters(self) -> list[dict[str, Any]]:
        """None: servers need none."""
        return []

    def apply(
        self, gradient_of: Callable[[Held], torch.Tensor | None], hyperparameters: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add to each piece what was pushed for it. Local."""
        del hyperparameters
        with tracing.span("optimizer"):
            for piece in self.held:
                if (change := gradient_of(piece)) is not None:
                    piece.values.data.add_(change)

    def gather(self, shards: Shards, *, here: bool) -> None:
        """Give the user's optimizer the mean of all workers' states, from which they go on. Collective."""
        del here
        if self._group.members[self._group.rank] in shards.serving:
            self._optimizer.state.clear()  # it was loaded, or given here last, and has not been used since
        with tracing.span("unite"), torch.no_grad():
            unite_states(self._group, self._parameters, self._optimizer, self._sum)

    def copied(self, shards: Shards, lines: Sequence[tuple[int, int, int]]) -> dict[Place, State]:
        """None: there are no states that a server would copy."""
        del shards, lines
        return {}


def copied_state(optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, dict[str, Any]]:
    """Return a copy of what an optimizer keeps, for `restore_state`."""
    return {key: _copied(kept) for key, kept in optimizer.state.items()}


def restore_state(optimizer: torch.optim.Optimizer, state: Mapping[torch.Tensor, Mapping[str, Any]]) -> None:
    """Have an optimizer keep what it did when `copied_state` returned `state`, which stays as it is."""
    optimizer.state.clear()
    for key, kept in state.items():
        optimizer.state[key] = _copied(kept)


def _copied(kept: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in kept.items()}


def unite_states(
    group: Group, parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer, sum: Sum
) -> None:
    """Make of what optimizers keep the mean over the members that have it, on all of them. Collective.

    Args:
        group: the members.
        parameters: in an order that is the same on every member.
        optimizer: of these.
        sum: over the members, in place, of a vector.
    """
    state = optimizer.state
    outline: dict[tuple[int, str], Any] = {}
    for i, parameter in enumerate(parameters):
        for key, value in state.get(parameter, {}).items():
            if _is_averaged(key, value):
                outline[i, key] = _Averaged.of(value)
            elif isinstance(value, torch.Tensor):
                outline[i, key] = value.cpu()  # others may have no such device
            elif value is not None:
                outline[i, key] = value
    outlines: list[dict[tuple[int, str], Any]] = group.gather_objects(outline)
    for place in sorted({place for one in outlines for place in one}):
        values = [one[place] for one in outlines if place in one]
        i, key = place
        kept = state[parameters[i]]
        if isinstance(values[0], _Averaged):
            _average(kept, key, values, parameters[i].device, sum)
        else:  # of counts the highest: who had no unit of a step has not counted it
            found = max(values) if key == _COUNT else values[0]
            mine = kept.get(key)
            kept[key] = (
                found.to(_place_of(mine, optimizer, parameters[i])) if isinstance(found, torch.Tensor) else found
            )


@dataclass(frozen=True)
class _Averaged:
    """A tensor of an optimizer's state that becomes a mean."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, value: torch.Tensor) -> "_Averaged":
        return cls(tuple(value.shape), value.dtype)


def _average(kept: dict[str, Any], key: str, outlines: "Sequence[_Averaged]", device: torch.device, sum: Sum) -> None:
    """Make a tensor the mean over the members that have it, on all of them."""
    one, mine = outlines[0], kept.get(key)
    term = torch.zeros(one.shape, dtype=torch.float64 if one.dtype == torch.float64 else torch.float32)
    if mine is not None:
        term += mine.cpu() / len(outlines)
    sum(term.view(-1).numpy())
    if mine is None:
        kept[key] = term.to(device, one.dtype)
    else:
        mine.copy_(term)


def _place_of(mine: Any, optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> torch.device:
    """Return where an optimizer keeps a number of a parameter."""
    if isinstance(mine, torch.Tensor):
        return mine.device
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    return parameter.device if on_device else torch.device("cpu")


def _is_averaged(key: str, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and key != _COUNT
