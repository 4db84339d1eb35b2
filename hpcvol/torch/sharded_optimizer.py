"""An optimizer in shards: each member applies it to the pieces of parameters that it holds."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpcvol import tracing
from hpcvol.errors import CheckpointError, ConfigError, ModelError
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.shards import Shards
from hpcvol.torch.staging import spread

_NUMPY: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}

# They come to the same bits on pieces that are cut at multiples of GRAIN_NUMEL.
_ELEMENT_WISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
    torch.optim.ASGD,
    torch.optim.Rprop,
)

# Tensors that optimizers keep of a whole parameter.
_NUMBERS = frozenset({"step", "eta", "mu", "mu_product"})


State = Mapping[str, Any]
Place = tuple[int, int, int]
"""Parameter, first element, behind the last one."""


@dataclass(frozen=True)
class Held:
    """A piece of a parameter that this member holds.

    Attributes:
        parameter: its index.
        start: first element.
        stop: behind the last one.
        shard: which shard it is of.
        values: what the optimizer changes.
    """

    parameter: int
    start: int
    stop: int
    shard: int
    values: torch.nn.Parameter

    @property
    def place(self) -> Place:
        """Which piece it is, by numbers."""
        return self.parameter, self.start, self.stop

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return these elements of a tensor of the whole parameter's shape."""
        return tensor.view(-1)[self.start : self.stop]


class Flat:
    """Parameters of one dtype in one vector.

    Args:
        indices: of the parameters.
        parameters: all of the run.
        layout: as that of their gradients.

    Attributes:
        memory: the vector.
    """

    def __init__(self, indices: Sequence[int], parameters: Sequence[torch.nn.Parameter], layout: Layout) -> None:
        self.indices = indices
        self.layout = layout
        self._parameters = [parameters[i] for i in indices]
        self._on_cpu = parameters[indices[0]].device.type == "cpu"
        self.memory = Memory(layout.numel, _NUMPY[self._parameters[0].dtype])

    def move_in(self) -> None:
        """Copy the parameters to the vector, and let them lie there on the CPU. Local; `memory` is shared by now."""
        self._host = torch.from_numpy(self.memory.mine)
        for place, parameter in enumerate(self._parameters):
            own = self._slice(place).view(parameter.shape)
            own.copy_(parameter.data)
            if self._on_cpu:
                parameter.data = own

    def move_out(self) -> None:
        """Give the parameters memory of their own. Local."""
        if self._on_cpu:
            for parameter in self._parameters:
                parameter.data = parameter.data.clone()

    def to_vector(self, held: Sequence[Held]) -> None:
        """Have in the vector what the optimizer made of pieces, where parameters lie on a device. Local."""
        if not self._on_cpu:
            places = {index: place for place, index in enumerate(self.indices)}
            for piece in held:
                if piece.parameter in places:
                    piece.of(self._slice(places[piece.parameter])).copy_(piece.values.data)

    def all_to_vector(self) -> None:
        """Have in the vector what the parameters are, where they lie on a device. Local."""
        if not self._on_cpu:
            for place, parameter in enumerate(self._parameters):
                self._slice(place).copy_(parameter.data.view(-1))

    def to_parameters(self) -> None:
        """Have in the parameters what is in the vector, where they lie on a device. Local."""
        if not self._on_cpu:
            for place, parameter in enumerate(self._parameters):
                parameter.data.view(-1).copy_(self._slice(place))

    def _slice(self, place: int) -> torch.Tensor:
        start = self.layout.starts[place]
        return self._host[start : start + self.layout.numels[place]]


class ShardedOptimizer:
    """What a user's optimizer does, of the pieces that this member holds.

    The user's gives its hyperparameters at every step, and its state at first and whenever one is loaded into it; it is
    empty afterwards, but from `gather` to the next step.

    Args:
        optimizer: the user's.
        parameters: names and parameters that require a gradient, in an order that is the same on every member.

    Attributes:
        held: the pieces.

    Raises:
        ConfigError: an optimizer that is not known to work on pieces of parameters.
        ModelError: parameters of another dtype than float32 and float64, or not contiguous.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[tuple[str, torch.nn.Parameter]]) -> None:
        check_served(parameters, optimizer)
        self._optimizer = optimizer
        self._names = [name for name, _ in parameters]
        self._parameters = [parameter for _, parameter in parameters]
        self._taken: Any = None
        self.held: list[Held] = []

    def hold(self, pieces: Sequence[Held], states: Mapping[Place, State] | None = None) -> None:
        """Hold `pieces` from now on. Local.

        Args:
            pieces: in an order of their own.
            states: of those that have any; by default what the user's optimizer has of them, which is taken from it.

        Raises:
            CheckpointError: there is a tensor in it that has not the shape of its parameter.
        """
        if states is None:
            states = {piece.place: self._cut(piece) for piece in pieces}
            self._taken = self._optimizer.state
            self._taken.clear()
        by_parameter: dict[int, list[Held]] = defaultdict(list)
        for piece in pieces:
            by_parameter[piece.parameter].append(piece)
        places = {parameter: index for index, parameter in enumerate(self._parameters)}
        groups = []
        self.held = []
        for theirs in self._optimizer.param_groups:
            of_group = [one for p in theirs["params"] if p in places for one in by_parameter.pop(places[p], [])]
            self.held += of_group
            groups.append({**theirs, "params": [piece.values for piece in of_group]})
        for rest in by_parameter.values():
            self.held += rest  # of no group, and part of the gradient's norm all the same
        state: defaultdict[Any, Any] = defaultdict(dict)
        for piece in self.held:
            if own := states.get(piece.place):
                state[piece.values] = {
                    name: value if _is_number(name, value) else value.to(piece.values.device)
                    for name, value in own.items()
                }
        self._known = self.hyperparameters()
        # What unpickling does: constructors of optimizers differ.
        self._shadow: torch.optim.Optimizer = type(self._optimizer).__new__(type(self._optimizer))
        self._shadow.__setstate__({**self._optimizer.__getstate__(), "state": state, "param_groups": groups})

    @property
    def shards(self) -> set[int]:
        """The shards that the pieces are of."""
        return {piece.shard for piece in self.held}

    def take_loaded(self) -> None:
        """Take over a state that was loaded into the user's optimizer since, if there is one. Local."""
        if self._optimizer.state is not self._taken:  # `load_state_dict` makes another one
            self.hold(self.held)
        self._optimizer.state.clear()

    def hyperparameters(self) -> list[dict[str, Any]]:
        """Return what the user's optimizer has besides parameters and their state, by group. Local."""
        return [
            {name: value for name, value in group.items() if name != "params"} for group in self._optimizer.param_groups
        ]

    def apply(
        self, gradient_of: Callable[[Held], torch.Tensor | None], hyperparameters: Sequence[Mapping[str, Any]]
    ) -> None:
        """Change the pieces by their gradients, None for those of parameters that nobody used. Local."""
        for group, newest, known in zip(self._shadow.param_groups, hyperparameters, self._known, strict=True):
            # An optimizer may keep something of its own there: only what the user has changed is taken over.
            group.update({name: value for name, value in newest.items() if _differs(value, known.get(name))})
        self._known = [dict(newest) for newest in hyperparameters]
        for piece in self.held:
            piece.values.grad = gradient_of(piece)
        with tracing.span("optimizer"):
            self._shadow.step()
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules ask for it

    def states(self, shard: int | None = None) -> dict[Place, State]:
        """Return the states of the pieces of a shard, or of all. Local."""
        return {
            piece.place: dict(self._shadow.state[piece.values])
            for piece in self.held
            if shard in (None, piece.shard) and piece.values in self._shadow.state
        }

    def gather(self, shards: Shards, *, here: bool) -> None:
        """Give the user's optimizer the state of all shards, up to the next step. Collective.

        Args:
            shards: who holds what.
            here: whether on this member.
        """
        whole: dict[int, dict[str, Any]] = {}
        for shard, source in enumerate(shards.ranks):
            for (index, start, stop), state in spread(shards.group, self.states(shard), source[0]).items():
                if here:
                    _paste(whole.setdefault(index, {}), state, start, stop, self._parameters[index])
        self._optimizer.state.clear()
        for index, state in whole.items():
            self._optimizer.state[self._parameters[index]] = state

    def copied(self, shards: Shards, lines: Sequence[tuple[int, int, int]]) -> dict[Place, State]:
        """Return the states of this member's pieces and of those that are copied to it. Collective.

        Args:
            shards: who holds what.
            lines: as `Shards.plan` returned.
        """
        group = shards.group
        me = group.members[group.rank]
        found = self.states()
        for shard, source, new in lines:
            state = spread(group, self.states(shard) if me == source else None, group.members.index(source))
            if me == new:
                found |= state
        return found

    def _cut(self, piece: Held) -> State:
        """Return what a piece has of the state that the user's optimizer has of its parameter."""
        shape = self._parameters[piece.parameter].shape
        cut: dict[str, Any] = {}
        for name, value in self._optimizer.state.get(self._parameters[piece.parameter], {}).items():
            if not shape and isinstance(value, torch.Tensor) and name not in _NUMBERS:
                cut[name] = value.reshape(1).clone()
            elif _is_number(name, value):
                cut[name] = copy.deepcopy(value)
            elif value.shape == shape:
                cut[name] = piece.of(value.contiguous()).clone()
            else:
                raise CheckpointError(
                    f"the optimizer's state {name!r} of parameter {self._names[piece.parameter]!r} is "
                    f"{list(value.shape)}: expected {list(shape)}, as its parameter"
                )
        return cut


def check_served(parameters: Sequence[tuple[str, torch.nn.Parameter]], optimizer: torch.optim.Optimizer | None) -> None:
    """Refuse what cannot be served.

    Args:
        parameters: names and parameters.
        optimizer: of them; None where servers do not apply it.

    Raises:
        ConfigError, ModelError: as `ShardedOptimizer`.
    """
    kind = type(optimizer)
    if optimizer is not None and kind not in _ELEMENT_WISE and not getattr(kind, "element_wise", False):
        known = ", ".join(one.__name__ for one in _ELEMENT_WISE)
        raise ConfigError(
            f"the optimizer is {kind.__name__}, and servers apply it to pieces of parameters: expected one that treats "
            f"each element by itself ({known}); one of your own says so with `element_wise = True` in its class"
        )
    for name, parameter in parameters:
        if parameter.dtype not in _NUMPY:
            raise ModelError(
                f"parameter {name!r} is {parameter.dtype}: servers hold float32 and float64; keep parameters in one "
                'of them, and compute in bf16 with train.precision = "bf16" (autocast)'
            )
        if not parameter.is_contiguous():
            raise ModelError(
                f"parameter {name!r} is not contiguous (strides {parameter.stride()}), and servers hold pieces of it: "
                "use `parameter.data = parameter.data.contiguous()` before the run starts"
            )


def _paste(
    whole: dict[str, Any], state: Mapping[str, Any], start: int, stop: int, parameter: torch.nn.Parameter
) -> None:
    """Put a piece's state into that of its parameter."""
    for name, value in state.items():
        if _is_number(name, value):
            whole[name] = value
        else:
            if name not in whole:
                whole[name] = torch.zeros(parameter.shape, dtype=value.dtype, device=parameter.device)
            whole[name].view(-1)[start:stop] = value.to(parameter.device)


def _is_number(name: str, value: Any) -> bool:
    """Whether an optimizer keeps this of a whole parameter, rather than of each of its elements."""
    return not isinstance(value, torch.Tensor) or name in _NUMBERS or value.dim() == 0


def _differs(value: Any, known: Any) -> bool:
    if isinstance(value, torch.Tensor) or isinstance(known, torch.Tensor):
        return value is not known
    return bool(value != known)
