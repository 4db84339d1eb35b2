"""Handing batches from a DataLoader's worker process to the training process without sending them.

torch hands each tensor over in a shared memory file of its own: a file made, its descriptor sent through a socket and
mapped, its pages faulted in, for every tensor of every batch. Here a worker keeps a few anonymous memory files, gathers
tensor after tensor into those that are free, and sends their numbers. The training process maps each file once, and
marks it as free when the tensor is gone. Nothing of it has a name in /dev/shm, whose size in containers is 64 MB, and
nothing outlives the processes.
"""

import math
import mmap
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvol.errors import DataError

_HEADER_NBYTES = 64  # the first byte tells whether the tensor behind it is in use; 64 keep the tensor aligned
_IN_USE = 1


class Handed:
    """A batch on its way: it pickles as numbers, and unpickles as a dictionary of tensors.

    Args:
        batch: tensors by field name. Those in memory of `allocate` stay where they are, others are copied there; other
            values are sent as they are.
    """

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self._values = {
            name: _announce(value) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self._values,)


def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array in memory that can be handed over. For `Split.take` in a worker; hand it over, or it is lost."""
    count = math.prod(shape)
    file = _pool().take(count * dtype.itemsize)
    return np.frombuffer(file.memory, dtype, count, _HEADER_NBYTES).reshape(shape)


@dataclass(frozen=True)
class _Announced:
    """A tensor in a worker's file."""

    process: int
    descriptor: int
    file_nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _File:
    """An anonymous memory file of a worker, for one tensor at a time. It is never closed: its number is its name."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.descriptor = os.memfd_create("hpcvol-batch", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, nbytes)
        self.memory = mmap.mmap(self.descriptor, nbytes)
        self.address = np.frombuffer(self.memory, np.uint8).ctypes.data + _HEADER_NBYTES


class _Pool:
    """The files of one worker process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.by_address: dict[int, _File] = {}

    def take(self, nbytes: int) -> _File:
        """Return a file for `nbytes` that no tensor is in, marked as in use."""
        # A power of two, so that tensors of ragged fields, which differ in size, find files that fit.
        needed = 1 << max(12, (_HEADER_NBYTES + nbytes - 1).bit_length())
        for file in self.by_address.values():
            if file.nbytes == needed and file.memory[0] != _IN_USE:
                break
        else:
            file = _File(needed)
            self.by_address[file.address] = file
        file.memory[0] = _IN_USE
        return file


_own: _Pool | None = None
_mapped: dict[tuple[int, int], mmap.mmap] = {}


def _pool() -> _Pool:
    global _own
    if _own is None or _own.process != os.getpid():
        _own = _Pool()
    return _own


def _announce(tensor: torch.Tensor) -> _Announced:
    file = _pool().by_address.get(tensor.data_ptr())
    if file is None or not tensor.is_contiguous():
        file = _pool().take(tensor.numel() * tensor.element_size())
        _tensor(file.memory, tuple(tensor.shape), tensor.dtype).copy_(tensor)
    return _Announced(os.getpid(), file.descriptor, file.nbytes, tuple(tensor.shape), tensor.dtype)


def _receive(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch, its tensors views of a worker's files; runs where a `Handed` is unpickled."""
    return {name: _arrived(value) if isinstance(value, _Announced) else value for name, value in values.items()}


def _arrived(announced: _Announced) -> torch.Tensor:
    memory = _mapping(announced)
    whole = np.frombuffer(memory, np.uint8)
    # The tensor, and every view of it, refers to this array; when the last is gone the worker may use the file again.
    weakref.finalize(whole, _release, memory).atexit = False
    return _tensor(whole, announced.shape, announced.dtype)


def _release(memory: mmap.mmap) -> None:
    memory[0] = 0


def _tensor(memory: Any, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor in a file's memory, without a copy."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=_HEADER_NBYTES).view(shape)


def _mapping(announced: _Announced) -> mmap.mmap:
    """Map a worker's file, or return it where it is mapped already."""
    key = (announced.process, announced.descriptor)
    if key not in _mapped:
        for worker, number in list(_mapped):  # of workers that have ended: numbers of processes come again
            if not os.path.exists(f"/proc/{worker}"):
                _mapped.pop((worker, number), None)
        path = f"/proc/{announced.process}/fd/{announced.descriptor}"
        try:
            opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(
                f"the memory of DataLoader worker {announced.process} cannot be opened ({path}: {error.strerror}): the "
                "worker has ended, or the system hides a process's files from its parent; use num_workers=0"
            ) from None
        try:
            _mapped[key] = mmap.mmap(opened, announced.file_nbytes)
        finally:
            os.close(opened)
    return _mapped[key]
