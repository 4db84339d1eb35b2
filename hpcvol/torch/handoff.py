"""Handing batches from a DataLoader's worker process to the training process without sending them.

torch hands each tensor over in a shared memory file of its own: a file made, its descriptor sent through a socket and
mapped, its pages faulted in, for every tensor of every batch. Here a worker keeps a few anonymous memory files, gathers
tensor after tensor into those that are free, and sends their numbers. The training process maps each file once, and
marks it as free when the tensor is gone. Nothing of it has a name in /dev/shm, whose size in containers is 64 MB, and
nothing outlives the processes.

A file is free when no array of it is left in the worker and no tensor of it is on its way to the training process or
alive there. So whatever becomes of a batch, collated otherwise, sent by torch or dropped, its memory is used again.
"""

import math
import mmap
import os
import secrets
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvol.errors import DataError

_HEADER_NBYTES = 64  # the first byte tells whether the tensor behind it was announced; 64 keep the tensor aligned
_ANNOUNCED = 1


class Handed(dict[str, Any]):
    """A batch that a worker may send: a dictionary as any other, but through a queue its tensors go as numbers.

    It arrives as a plain dictionary. Only tensors whose memory was handed out here go as numbers; values that were put
    in later, and tensors that share memory with one of the same batch, are sent by torch.
    """


def hand_over(batch: Mapping[str, Any]) -> Handed:
    """Return the batch, with tensors that are not in memory of `allocate` copied there. For worker processes."""
    return Handed({name: _moved(value) for name, value in batch.items()})


def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array in memory that can be handed over. For `Split.take` in a worker process."""
    nbytes = math.prod(shape) * dtype.itemsize
    return _pool.lend(nbytes)[_HEADER_NBYTES : _HEADER_NBYTES + nbytes].view(dtype).reshape(shape)


@dataclass(frozen=True)
class _Announced:
    """A tensor in a worker's file."""

    process: int
    pool: str
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
        self.lent = False

    def is_free(self) -> bool:
        return not self.lent and self.memory[0] != _ANNOUNCED

    def lend(self) -> NDArray[np.uint8]:
        """Return the file's memory; it is lent until this array and all of its views are gone."""
        self.lent = True
        whole = np.frombuffer(self.memory, np.uint8)
        weakref.finalize(whole, self._give_back).atexit = False
        return whole

    def _give_back(self) -> None:
        self.lent = False


class _Pool:
    """The files of one worker process."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)  # numbers of processes come again
        self.by_address: dict[int, _File] = {}
        self._lock = threading.Lock()  # a dataset may gather in threads of its own

    def lend(self, nbytes: int) -> NDArray[np.uint8]:
        """Return the memory of a free file with room for `nbytes` behind the header."""
        # A power of two, so that tensors of ragged fields, which differ in size, find files that fit.
        needed = 1 << max(12, (_HEADER_NBYTES + nbytes - 1).bit_length())
        with self._lock:
            for file in self.by_address.values():
                if file.nbytes == needed and file.is_free():
                    break
            else:
                file = _File(needed)
                self.by_address[file.address] = file
            return file.lend()


_pool = _Pool()
_mapped: dict[tuple[int, str], dict[int, mmap.mmap]] = {}  # files by number, by process and pool


def _begin_as_child() -> None:
    global _pool
    _pool = _Pool()
    _mapped.clear()


os.register_at_fork(after_in_child=_begin_as_child)


def _moved(value: Any) -> Any:
    if not _is_plain(value) or value.data_ptr() in _pool.by_address:
        return value
    whole = _pool.lend(value.numel() * value.element_size())
    return _tensor(whole, tuple(value.shape), value.dtype).copy_(value)


def _is_plain(value: Any) -> bool:
    """Tell whether shape, dtype and bytes are all that there is to a tensor."""
    return (
        type(value) is torch.Tensor
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.requires_grad or value.is_quantized or value.is_nested or value.is_conj() or value.is_neg())
        and value.numel() > 0
    )


def _send(batch: Handed) -> tuple[Any, ...]:
    """Reduce a batch that is certainly sent: multiprocessing pickles it so, copies and files of it are ordinary."""
    return _receive, ({name: _announced(value) for name, value in batch.items()},)


ForkingPickler.register(Handed, _send)


def _announced(value: Any) -> Any:
    """Return where the training process finds a tensor, or the value where torch has to send it."""
    file = _pool.by_address.get(value.data_ptr()) if _is_plain(value) else None
    if file is None or not value.is_contiguous() or file.memory[0] == _ANNOUNCED:
        return value
    file.memory[0] = _ANNOUNCED
    return _Announced(os.getpid(), _pool.name, file.descriptor, file.nbytes, tuple(value.shape), value.dtype)


def _receive(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch, its tensors views of a worker's files; runs where a `Handed` arrives."""
    return {name: _arrived(value) if isinstance(value, _Announced) else value for name, value in values.items()}


def _arrived(announced: _Announced) -> torch.Tensor:
    memory = _mapping(announced)
    whole = np.frombuffer(memory, np.uint8)
    # The tensor, and every view of it, refers to this array; when the last is gone the worker may use the file again.
    weakref.finalize(whole, _release, memory, os.getpid()).atexit = False
    return _tensor(whole, announced.shape, announced.dtype)


def _release(memory: mmap.mmap, process: int) -> None:
    if os.getpid() == process:  # what a forked child drops, its parent may still have
        memory[0] = 0


def _tensor(memory: Any, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor in a file's memory, without a copy."""
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=_HEADER_NBYTES).view(shape)


def _mapping(announced: _Announced) -> mmap.mmap:
    """Map a worker's file, or return it where it is mapped already."""
    files = _mapped.get((announced.process, announced.pool))
    if files is None:
        files = _files_of(announced.process, announced.pool)
    if announced.descriptor not in files:
        files[announced.descriptor] = _open(announced)
    return files[announced.descriptor]


def _files_of(process: int, pool: str) -> dict[int, mmap.mmap]:
    """Return where to keep the files of a worker that is new here: they are dropped with its process object."""
    children = {child.pid: child for child in active_children()}
    for key in list(_mapped):
        if key[0] not in children:  # torch refers to some process objects until the end of the program
            _mapped.pop(key, None)
    files: dict[int, mmap.mmap] = {}
    if process in children:
        _mapped[process, pool] = files
        weakref.finalize(children[process], _mapped.pop, (process, pool), None).atexit = False
    return files


def _open(announced: _Announced) -> mmap.mmap:
    path = f"/proc/{announced.process}/fd/{announced.descriptor}"
    try:
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(
            f"the memory of DataLoader worker {announced.process} cannot be opened ({path}: {error.strerror}): the "
            "worker has ended, or the system hides a process's files from its parent; use num_workers=0"
        ) from None
    try:
        return mmap.mmap(opened, announced.file_nbytes)
    finally:
        os.close(opened)
