"""Buffers of a model (BatchNorm's running statistics) under units that must be pure.

Before each unit every buffer has the value it had at the step's start. What a unit changes is taken as a difference:
floating point differences are averaged by weight in an exact sum and applied once, integer ones (a counter of batches)
must be the same for every unit of the step and are applied once. So a step changes a buffer as one unit would, whoever
computed which unit.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvol.errors import ModelError
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.torch.exact import ExactSum, Term

_AVERAGED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTED = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NO_UNIT = np.iinfo(np.int64).min


class Buffers:
    """The buffers of `model` as last committed, and what the units of a step change in them.

    Args:
        model: its buffers are changed in place by `prepare` and `finish`.
        units_per_step: units of a full step.
        strategy: combines vectors over ranks.
        device: where the model is.

    Attributes:
        committed: every buffer as it was last committed, by name.
        averaged: names of those of floating point.
        counted: names of those of integers.
    """

    def __init__(self, model: torch.nn.Module, units_per_step: int, strategy: AllReduce, device: torch.device) -> None:
        self._modules = list(model.named_modules())
        self._strategy = strategy
        self.committed: dict[str, torch.Tensor] = {}
        self.take_current()
        self.averaged = [name for name, value in self.committed.items() if value.dtype in _AVERAGED]
        self.counted = [name for name, value in self.committed.items() if value.dtype in _COUNTED]
        terms = [Term(f"buffer {name}", self.committed[name].numel()) for name in self.averaged]
        self.total = ExactSum(terms, units_per_step, strategy, device, torch.float64)
        # Checkpoints hold what state_dict() does, so that training must not live in any other buffer.
        self._kept = set(model.state_dict())
        self._counts: dict[str, torch.Tensor] = {}
        self._counts_of_all = np.empty(0, np.int64)

    def take_current(self) -> None:
        """Make the model's present buffers the committed ones: at the start, and after a checkpoint was loaded."""
        self.committed = {name: buffer.detach().clone() for name, buffer in self._named().items()}

    def put(self, buffers: dict[str, torch.Tensor]) -> None:
        """Make `buffers` the committed ones, and the model's. Local."""
        self.committed = buffers
        self.prepare()

    def reset(self) -> None:
        """Forget all units of the step."""
        self._counts = {}
        self.total.reset()

    def prepare(self) -> None:
        """Put every buffer back to its committed value, before a unit."""
        with torch.no_grad():
            for name, buffer in self._current().items():
                buffer.copy_(self.committed[name])

    def add(self, weight: int) -> None:
        """Take in what the unit just computed changed.

        Raises:
            ModelError: a buffer appeared, vanished, changed its shape, dtype or device, or is neither floating point
                nor an integer counter that every unit of the step changes alike.
        """
        current = self._current()
        for index, name in enumerate(self.averaged):
            before, after = self.committed[name], current[name]
            # A constant may hold infinities (an attention mask), whose difference is not a number.
            if not torch.equal(before, after):
                self._check_kept(name)
                self.total.add(index, after.double() - before.double(), weight)
        for name in self.counted:
            change = current[name] - self.committed[name]
            if change.any():
                self._check_kept(name)
            if not torch.equal(self._counts.setdefault(name, change), change):
                raise self._refusal(name, "was changed differently by two units of a step")
        for name, before in self.committed.items():
            if before.dtype not in _AVERAGED + _COUNTED and not torch.equal(before, current[name]):
                raise self._refusal(name, f"of dtype {before.dtype} was changed by a unit")

    def refuse_changes(self) -> None:
        """Refuse what units changed, where no member waits for others: nobody would average it.

        Raises:
            ModelError: a buffer changed.
        """
        current = self._current()
        for name, before in self.committed.items():
            if not torch.equal(before, current[name]):
                raise ModelError(
                    f"buffer {name!r} was changed by a unit, and members that do not wait for each other cannot "
                    "average it: use layers without running statistics (LayerNorm, GroupNorm), or "
                    "strategy.max_staleness = 0"
                )

    def agree(self) -> bool:
        """Collective: False if the units must be computed again.

        Raises:
            ModelError: two workers changed an integer buffer differently; raised on every member.
        """
        highest = np.concatenate([self._count_vector(name) for name in self.counted] or [np.empty(0, np.int64)])
        both = np.concatenate([highest, np.where(highest == _NO_UNIT, _NO_UNIT, -highest)])
        if both.size:
            self._strategy.max(both)
        highest, lowest = both[: highest.size], -both[highest.size :]
        if not np.array_equal(highest, lowest) and not (highest == _NO_UNIT).all():
            name = self._name_at(int(np.flatnonzero(highest != lowest)[0]))
            raise self._refusal(name, "was changed differently by two workers", everywhere=True)
        self._counts_of_all = highest
        self.total.push_all()
        return self.total.agree() if self.averaged else True

    def drop(self) -> None:
        """Collective: the step is computed again."""
        self.total.drop()

    def combine(self, weight: int) -> None:
        """Find what the step's units changed; `weight` is the step's Σ weight. Collective."""
        if self.averaged:
            self.total.finish(weight)

    def rebuild(self) -> None:
        """Combine over the members that there are now; units that this one has computed stay. Collective."""
        self.total.rebuild()

    def finish(self) -> None:
        """Apply the step's changes once, alike on every member, and make the result the committed value. Local."""
        for index, name in enumerate(self.averaged):
            if self.total.present(index):
                value = self.committed[name]
                value.copy_(value.double() + self.total.mean(index).view(value.shape))
        offset = 0
        for name in self.counted:
            value = self.committed[name]
            change = torch.from_numpy(self._counts_of_all[offset : offset + value.numel()])
            value.add_(change.view(value.shape).to(value))
            offset += value.numel()
        self.prepare()

    def commit(self) -> None:
        """Let the next step's exponents follow from this one."""
        self.total.commit()
        self._counts = {}

    def _count_vector(self, name: str) -> NDArray[np.int64]:
        change = self._counts.get(name)
        if change is None:
            return np.full(self.committed[name].numel(), _NO_UNIT)
        return change.reshape(-1).to("cpu", torch.int64).numpy()

    def _name_at(self, position: int) -> str:
        for name in self.counted:
            position -= self.committed[name].numel()
            if position < 0:
                return name
        raise IndexError(position)

    def _current(self) -> dict[str, torch.Tensor]:
        current = self._named()
        for name, buffer in current.items():
            before = self.committed.get(name)
            if before is None:
                raise self._refusal(name, "appeared after training began")
            if (before.shape, before.dtype, before.device) != (buffer.shape, buffer.dtype, buffer.device):
                raise self._refusal(
                    name,
                    f"became {list(buffer.shape)} {buffer.dtype} on {buffer.device} from {list(before.shape)} "
                    f"{before.dtype} on {before.device}",
                )
        missing = set(self.committed) - set(current)
        if missing:
            raise self._refusal(min(missing), "vanished")
        return current

    def _named(self) -> dict[str, torch.Tensor]:
        """Return what `named_buffers` does, over modules listed once: listing them costs as much as a small unit."""
        named: dict[str, torch.Tensor] = {}
        seen: set[int] = set()
        for prefix, module in self._modules:
            for name, buffer in module._buffers.items():
                if buffer is not None and id(buffer) not in seen:
                    seen.add(id(buffer))
                    named[f"{prefix}.{name}" if prefix else name] = buffer
        return named

    def _check_kept(self, name: str) -> None:
        if name not in self._kept:
            raise ModelError(
                f"buffer {name!r} is changed by training and is not in the model's state_dict, so that a checkpoint "
                "would lose it: register it with persistent=True"
            )

    def _refusal(self, name: str, what: str, *, everywhere: bool = False) -> ModelError:
        return ModelError(
            f"buffer {name!r} {what}. A unit must be a pure function of the parameters, so a buffer may only be "
            "averaged (floating point) or counted (integers, the same for every unit); keep other state outside the "
            "model's buffers",
            everywhere=everywhere,
        )
