"""Getting a tensor's elements to MPI and back: nothing to do on the CPU, pinned host memory for a GPU.

MPI libraries from wheels know no GPU memory, so a GPU's vector is copied to page-locked memory, combined there and
copied back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvol.collectives import broadcast
from hpcvol.comm import Group


class Staging:
    """Lends the elements of one flat tensor to functions on NumPy vectors.

    Args:
        tensor: contiguous, 1-D; its storage must stay the same.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        on_gpu = tensor.device.type != "cpu"
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=True) if on_gpu else tensor
        self._vector: NDArray[Any] = self._host.numpy()

    def apply(self, function: Callable[[NDArray[Any]], None]) -> None:
        """Call `function(vector)`, which changes the vector in place; the tensor has the result afterwards."""
        if self._host is self._tensor:
            function(self._vector)
            return
        self._host.copy_(self._tensor)
        function(self._vector)
        self._tensor.copy_(self._host)


def broadcast_tensor(group: Group, tensor: torch.Tensor, root: int = 0) -> None:
    """Give every rank the bits that rank `root` has in `tensor`, of any dtype, shape and device. Collective, in place.

    A contiguous tensor in main memory whose bytes are whole words is sent from where it is, others from a copy.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    octets: NDArray[np.uint8] = flat.numpy()
    if octets.size % 4 == 0 and octets.ctypes.data % 4 == 0:
        broadcast(group, octets.view(np.int32), root)
    else:
        words = np.zeros(-(-octets.size // 4), np.int32)
        words.view(np.uint8)[: octets.size] = octets
        broadcast(group, words, root)
        octets[:] = words.view(np.uint8)[: octets.size]
    if flat.data_ptr() != tensor.data_ptr():
        with torch.no_grad():
            tensor.copy_(flat.view(tensor.dtype).view(tensor.shape))


@dataclass(frozen=True)
class _Missing:
    """Stands for a tensor that follows."""

    shape: torch.Size
    dtype: torch.dtype


def spread(group: Group, tree: Any, root: int) -> Any:
    """Return on all ranks the nested dicts, lists and tuples that rank `root` has, its tensors on the CPU. Collective.

    Args:
        group: the live ranks.
        tree: what `root` has; its leaves are tensors, or small objects that pickle. Others' is not looked at.
        root: the rank that has it.
    """
    tensors: list[torch.Tensor] = []

    def take_out(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        tensors.append(leaf.detach().cpu())
        return _Missing(leaf.shape, leaf.dtype)

    def receive(leaf: Any) -> Any:
        if not isinstance(leaf, _Missing):
            return leaf
        tensor = next(own) if group.rank == root else torch.empty(leaf.shape, dtype=leaf.dtype)
        broadcast_tensor(group, tensor, root)
        return tensor

    skeleton = group.broadcast_object(_map(tree, take_out) if group.rank == root else None, root)
    own = iter(tensors)
    return _map(skeleton, receive)


def _map(tree: Any, change: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _map(value, change) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)) and not isinstance(tree, torch.Size):
        return type(tree)([_map(value, change) for value in tree])
    return change(tree)
