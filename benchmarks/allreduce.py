"""All-reduce of float32 on one node: hpcvol's ways beside MPI's own, gloo, a ring, and what memory can do.

- hpcvol: vectors that lie in shared memory (`hpcvol.collectives.direct`), as gradients do.
- hpcvol_outside: vectors that lie anywhere (`hpcvol.collectives.on_node`).
- ring: hpcvol's ring over MPI messages.
- mpi: MPI_Allreduce in place, whole or in pieces of 2 MiB, whichever is faster at that length.
- mpi_whole: one MPI_Allreduce in place, as programs call it.
- gloo: torch.distributed.
- roof: the same reads and writes on memory of its own, all ranks at once, without waiting for each other.

Every rank rewrites its vector before each call and all begin together; the slowest rank of a call counts. `read` adds
that each rank then reads its whole result, of which the other cores have some in their caches. Contenders take turns.
Ratios are of the p25; those to gloo compare the least times, because gloo's threads make its p25 a matter of luck.

    mpiexec -n 2 python benchmarks/allreduce.py [--json FILE] [--quick]
"""

import mmap
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mpi4py import MPI
from numba import njit
from numpy.typing import NDArray
from report import Row, arguments, publish

from hpcvol.collectives import on_node, ring
from hpcvol.collectives.direct import SharedVector, share
from hpcvol.comm import Group
from hpcvol.comm import start as start_mpi
from hpcvol.comm.vectors import ALLREDUCE_PIECE_NBYTES
from hpcvol.kernels.combine import SUM, combine

NBYTES = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 100 << 20)
ROUNDS = 6
HUGE_PAGE = 2 << 20

Vector = NDArray[np.float32]
Contender = Callable[[int], None]


@njit(nogil=True, cache=True)
def rewrite(vector):  # type: ignore[no-untyped-def]
    for i in range(vector.size):
        vector[i] = np.float32(1)


@njit(nogil=True, cache=True, fastmath=True)
def read(vector):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(vector.size):
        total += vector[i]
    return total


@njit(nogil=True, cache=True)
def combine_slices(vector, table):  # type: ignore[no-untyped-def]
    nbytes = vector.size * 4 // table.size // 64 * 64
    combine(np.float32, SUM, table.ctypes.data, table.size, table.ctypes.data, table.size, 1, 0, nbytes)


def private(numel: int) -> Vector:
    """Return memory of this process alone in huge pages, which favours those who get it."""
    memory = mmap.mmap(-1, 4 * numel + HUGE_PAGE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(memory, np.uint8)
    begin = -raw.ctypes.data % HUGE_PAGE
    vector: Vector = raw[begin : begin + 4 * numel].view(np.float32)
    vector[:] = 0
    return vector


class Roof:
    """Reads and writes as much as a rank of the all-reduce does: its slice of as many vectors as there are ranks."""

    def __init__(self, vector: Vector, other: Vector, ranks: int) -> None:
        self._vector, self._other = vector, other
        starts = other.ctypes.data + np.arange(ranks - 1) * (other.nbytes // max(1, ranks - 1) // 64 * 64)
        self._table = np.array([vector.ctypes.data, *starts])

    def __call__(self, numel: int) -> None:
        """Combine as much as for vectors of `numel`."""
        combine_slices(self._vector[:numel], self._table)


def contenders(group: Group, shared: SharedVector, vector: Vector) -> dict[str, tuple[Vector, Contender]]:
    """Return each contender's vector, and what combines the first elements of it."""
    communicator = group.communicator
    tensor = torch.from_numpy(vector)
    piece = ALLREDUCE_PIECE_NBYTES // 4

    def mpi_in_pieces(numel: int) -> None:
        for start in range(0, numel, piece):
            communicator.Allreduce(MPI.IN_PLACE, vector[start : min(start + piece, numel)])

    return {
        "hpcvol": (shared.mine, lambda numel: shared.allreduce("sum", 0, numel)),
        "hpcvol_outside": (vector, lambda numel: on_node.allreduce(group, vector[:numel], "sum")),
        "ring": (vector, lambda numel: ring.allreduce(group, vector[:numel], "sum")),
        "mpi_whole": (vector, lambda numel: communicator.Allreduce(MPI.IN_PLACE, [vector, numel, MPI.FLOAT])),
        "mpi_pieces": (vector, mpi_in_pieces),
        "gloo": (vector, lambda numel: dist.all_reduce(tensor[:numel])),
        "roof": (vector, Roof(vector, private(vector.size), group.size)),
    }


def check(found: dict[str, tuple[Vector, Contender]], group: Group) -> None:
    """Refuse to time what is wrong; compiles everything on the way."""
    for name, (vector, contender) in found.items():
        for nbytes in NBYTES:
            numel = min(nbytes // 4, vector.size)
            vector[:numel] = group.rank + 1
            group.barrier()
            contender(numel)
            group.barrier()
            if name != "roof" and not (vector[:numel] == sum(range(1, group.size + 1))).all():
                raise SystemExit(f"{name} is wrong at {nbytes} bytes")
        read(vector[:1])
        rewrite(vector[:1])


def timed(
    vector: Vector, contender: Contender, numel: int, count: int, begin: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Return seconds of `count` calls, and of calls with reading."""
    part = vector[:numel]
    alone, with_read = [], []
    for _ in range(count):
        rewrite(part)
        begin()
        start = time.perf_counter()
        contender(numel)
        combined = time.perf_counter()
        read(part)
        alone.append(combined - start)
        with_read.append(time.perf_counter() - start)
    return alone, with_read


def measure(
    found: dict[str, tuple[Vector, Contender]], group: Group, nbytes: int, quick: bool
) -> dict[str, tuple[list[float], list[float]]]:
    """Return the slowest rank's seconds of every call, by contender, without and with reading."""
    meeting = share(group, 16, np.float32)
    assert meeting is not None
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in found}
    count = max(4, min(100, (64 << 20) // (nbytes + (64 << 10))) // (4 if quick else 1))
    for _ in range(2 if quick else ROUNDS):
        for name, (vector, contender) in found.items():
            # gloo takes milliseconds where others take microseconds
            repetitions = max(2, count // 4) if name == "gloo" else count
            times = timed(vector, contender, nbytes // 4, repetitions, meeting.allreduce)
            slowest = np.array(times)
            group.communicator.Allreduce(MPI.IN_PLACE, slowest, MPI.MAX)
            for kept, new in zip(seconds[name], slowest.tolist(), strict=True):
                kept += new
    return seconds


def rows(ranks: int, nbytes: int, seconds: dict[str, tuple[list[float], list[float]]]) -> Iterator[Row]:
    """Yield one row a contender and case, with ratios to MPI, gloo and the roof."""
    for case, index in (("reduce", 0), ("read", 1)):
        times = {name: both[index] for name, both in seconds.items()}
        times["mpi"] = min(times["mpi_whole"], times.pop("mpi_pieces"), key=p25)
        for name, mine in times.items():
            extra: dict[str, Any] = {
                "bytes": nbytes,
                "x_mpi": p25(times["mpi"]) / p25(mine),
                "x_gloo": min(times["gloo"]) / min(mine),
            }
            if case == "reduce":
                extra["of_roof"] = p25(times["roof"]) / p25(mine)
            yield Row(name, case, nbytes, ranks, mine, extra)


def p25(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 25))


def start_gloo(group: Group) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = group.broadcast_object(free.getsockname()[1])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=group.rank, world_size=group.size)


def main() -> None:
    """Measure, and publish from rank 0."""
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    group = start_mpi()
    start_gloo(group)
    torch.set_num_threads(1)
    if group.node is not group:
        raise SystemExit("this measures one node: start all ranks on one host")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= 2:  # a rank that moves to another core leaves its caches behind
        os.sched_setaffinity(0, {cores[group.rank % len(cores)]})
    shared = share(group, NBYTES[-1] // 4, np.float32)
    if shared is None:
        raise SystemExit("no shared memory here")
    found = contenders(group, shared, private(NBYTES[-1] // 4))
    check(found, group)
    table: list[Row] = []
    for nbytes in NBYTES:
        table += rows(group.size, nbytes, measure(found, group, nbytes, options.quick))
    if group.rank == 0:
        publish("allreduce", table, options.json)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
