"""A copy in main memory of what a checkpoint holds, so that training goes on while it is written."""

from collections.abc import Mapping
from typing import Any

import torch


class Snapshot:
    """A model's and an optimizer's state as they were when `take` was called; its memory is used again by the next.

    Attributes:
        model: parameters and buffers by name, on the CPU; tensors that share all of their memory (tied weights) once.
        optimizer: what `optimizer.state_dict()` returned, its tensors on the CPU.
        residuals: what members have not sent of their gradients; empty where they send all.
    """

    def __init__(self) -> None:
        self.model: dict[str, torch.Tensor] = {}
        self.optimizer: dict[str, Any] = {}
        self.residuals: dict[str, torch.Tensor] = {}
        self._memory: dict[tuple[Any, ...], torch.Tensor] = {}
        self._used: set[tuple[Any, ...]] = set()

    def take(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, residuals: Mapping[str, torch.Tensor]
    ) -> None:
        """Copy the present state. Local; the first call takes as much memory as model and optimizer do."""
        self._used.clear()
        self.model = {name: self._copy(value, ("model", name)) for name, value in untied(model.state_dict()).items()}
        self.optimizer = self._copy_tree(optimizer.state_dict(), ("optimizer",))
        self.residuals = {name: self._copy(value, ("residuals", name)) for name, value in residuals.items()}
        if any(value.is_cuda for value in model.state_dict().values()):
            torch.cuda.synchronize()
        for place in self._memory.keys() - self._used:
            del self._memory[place]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._memory.values())

    def _copy_tree(self, value: Any, place: tuple[Any, ...]) -> Any:
        if isinstance(value, torch.Tensor):
            return self._copy(value, place)
        if isinstance(value, Mapping):
            return {key: self._copy_tree(item, (*place, key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)([self._copy_tree(item, (*place, index)) for index, item in enumerate(value)])
        return value

    def _copy(self, tensor: torch.Tensor, place: tuple[Any, ...]) -> torch.Tensor:
        self._used.add(place)
        memory = self._memory.get(place)
        if memory is None or (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
            memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._memory[place] = memory
        memory.copy_(tensor.detach(), non_blocking=True)
        return memory


def untied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `state` with only the first of those tensors that are one and the same memory."""
    seen: set[tuple[Any, ...]] = set()
    kept = {}
    for name, tensor in state.items():
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() == 0 or memory not in seen:
            seen.add(memory)
            kept[name] = tensor
    return kept
