"""Memory that the ranks of a node share: one anonymous segment a rank, which its peers map too.

A segment is a memfd: it has no name anywhere, so that nothing is left behind by `kill -9`, and does not count against
the size of /dev/shm. It is allocated in full before it is used: where there is no room, making it fails, and nobody is
killed by SIGBUS at a first touch. Peers open it through /proc/PID/fd, also such as join later, and find a random number
in it that its owner told them through MPI: with several PID namespaces on a machine PID may be somebody else there.

A rank owns its segment alone: its own addresses stay the same when peers die or join, only the list of peers changes.
"""

import ctypes
import mmap
import os
import secrets
import sys
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcvol.comm.processes import Process

if TYPE_CHECKING:
    from hpcvol.comm.group import Group

Bytes = NDArray[np.uint8]

_NAME = "hpcvol"
_PAGE = mmap.PAGESIZE  # the last page of a segment holds its number
_NUMBER_NBYTES = 16

_told = False


@dataclass(frozen=True)
class _Descriptor:
    """What a rank tells its peers of its segment, or why it has none."""

    process: Process | None
    fd: int
    number: bytes
    nbytes: int
    trouble: str = ""


class Segment:
    """The memory that one rank owns.

    Args:
        nbytes: how much.

    Raises:
        OSError: there is no memfd here, or no room.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = -(-nbytes // _PAGE) * _PAGE
        self.number = secrets.token_bytes(_NUMBER_NBYTES)
        self.fd = _allocated(self.nbytes + _PAGE)
        weakref.finalize(self, os.close, self.fd)
        whole = _map(self.fd, self.nbytes + _PAGE)
        whole[self.nbytes : self.nbytes + _NUMBER_NBYTES] = np.frombuffer(self.number, np.uint8)
        self.memory = whole[:nbytes]


class SharedMemory:
    """This rank's memory and that of its peers on the node. Made by `allocate`; unmapped when it is dropped.

    Attributes:
        mine: uint8[nbytes], page aligned, zero at first; its address never changes.
        of: the same of every rank of the node, by node rank; `mine` at this rank's place.
        addresses: int64[ranks of the node], where each of `of` begins in this process.
        processes: the process behind each rank of the node.
    """

    def __init__(self, segment: Segment, of: tuple[Bytes, ...], processes: tuple[Process, ...]) -> None:
        self._segment = segment
        self.mine = segment.memory
        self.of = of
        self.addresses = np.array([memory.ctypes.data for memory in of], np.int64)
        self.processes = processes

    def with_peers_of(self, group: "Group") -> "SharedMemory | None":
        """Return the same memory of this rank with the peers that it has in `group`. Collective over `group.node`.

        Ranks that are new to the group call `allocate` meanwhile.
        """
        return _share(group.node, self._segment, "")


def allocate(group: "Group", nbytes: int) -> SharedMemory | None:
    """Allocate `nbytes` on every rank, open to all ranks of the node. Collective over `group.node`.

    Args:
        group: the group of which the ranks of a node share memory.
        nbytes: how much this rank wants for its own; each says for itself.

    Returns:
        The memory; None on all ranks of the node where one of them cannot have or open it. The run then goes on
        without, and the first rank of the node says so once.
    """
    try:
        return _share(group.node, Segment(nbytes), "")
    except OSError as error:
        return _share(group.node, None, f"cannot allocate {nbytes} bytes of it: {error}")


def _share(node: "Group", segment: Segment | None, trouble: str) -> SharedMemory | None:
    """Tell the peers of `segment` and open theirs. Collective: two small gathers."""
    if segment is None:
        mine = _Descriptor(None, -1, b"", 0, trouble)
    else:
        mine = _Descriptor(Process.current(), segment.fd, segment.number, segment.memory.size)
    descriptors: list[_Descriptor] = _gather(node, mine)
    of: list[Bytes] = []
    if not any(descriptor.trouble for descriptor in descriptors):
        try:
            for rank, descriptor in enumerate(descriptors):
                is_mine = segment is not None and rank == node.rank
                of.append(segment.memory if segment is not None and is_mine else _open(descriptor))
        except OSError as error:
            trouble = f"cannot open that of {node.name_of(len(of))}: {error}"
    troubles: list[str] = _gather(node, trouble)
    if segment is None or any(troubles):
        _tell_once(node, troubles)
        return None
    return SharedMemory(segment, tuple(of), tuple(d.process for d in descriptors if d.process is not None))


def _gather(node: "Group", mine: Any) -> list[Any]:
    from hpcvol.comm.faults import letting_nobody_wait  # which imports the calls of groups, whose boards are shared

    with letting_nobody_wait(node.communicator):
        found: list[Any] = node.communicator.allgather(mine)
    return found


def _tell_once(node: "Group", troubles: list[str]) -> None:
    global _told
    rank, trouble = next((rank, trouble) for rank, trouble in enumerate(troubles) if trouble)
    if node.rank == 0 and not _told:
        print(
            f"hpcvol: warning: no shared memory on {node.hosts[0]}: {node.name_of(rank)} {trouble}. The run goes on "
            "without it, and is slower where several members are on one host",
            file=sys.stderr,
        )
    _told = True


def _allocated(nbytes: int) -> int:
    """Return the descriptor of a new memfd with all of its pages allocated."""
    if not hasattr(os, "memfd_create"):
        raise OSError(f"{sys.platform} has no memfd_create")
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(descriptor: _Descriptor) -> Bytes:
    """Map the segment of another rank."""
    assert descriptor.process is not None
    path = f"/proc/{descriptor.process.pid}/fd/{descriptor.fd}"
    # Looked at before it is opened: opening whatever another process has under that number could do anything.
    if not os.readlink(path).startswith(f"/memfd:{_NAME} "):
        raise OSError(f"{path} is something else: are members of this host in different containers?")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size != -(-descriptor.nbytes // _PAGE) * _PAGE + _PAGE:
            raise OSError(f"{path} is of another size: are members of this host in different containers?")
        whole = _map(fd, size)
    finally:
        os.close(fd)
    if whole[size - _PAGE :][:_NUMBER_NBYTES].tobytes() != descriptor.number:
        raise OSError(f"{path} is another segment: are members of this host in different containers?")
    return whole[: descriptor.nbytes]


def _map(fd: int, nbytes: int) -> Bytes:
    """Map all of `fd`. Not by the mmap module, which keeps a descriptor open for every mapping."""
    libc = _libc()
    address = libc.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    # Not at exit: threads may still look at it then, and the kernel unmaps it anyway.
    weakref.finalize(memory, libc.munmap, address, nbytes).atexit = False
    return np.ctypeslib.as_array(memory)


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
