"""Pushing gradients to servers and pulling what an optimizer made of parameters: 100 MiB of float32, plain SGD.

Two ranks that both serve and work. One repetition: what each has computed is summed by who holds it, divided, applied,
and handed to the other. On one node (under mpiexec, or started plainly):

- shared: hpcvol, `servers = "all"`.
- point_to_point: each rank sends the half that the other holds, and gets its half of the parameters, by MPI's Sendrecv:
  whole, and in pieces of 1 MiB of which eight are on their way. The faster of the two is the peer.
- one_server: one rank sends everything to the other and is sent the parameters.
- memcpy: both ranks copy 100 MiB at once, to a destination that is in no cache.

`of_memcpy` is the time beside memcpy's, `times_faster` how many times as long point_to_point takes. With `--hosts` the
same between two virtual hosts at 1 Gbit/s (needs root, as the tests that use them): `messages` beside `sendrecv`, which
moves as many bytes both ways and does nothing else, whole or in pieces; `of_sendrecv` is the part of the throughput of
the faster of these.

    mpiexec -n 2 python benchmarks/parameter_server.py [--json FILE] [--quick]
    python benchmarks/parameter_server.py --hosts [--json FILE] [--quick]
"""

import argparse
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from report import Row, arguments, publish
from torch import nn

from hpcvol.comm import Group
from hpcvol.comm import start as start_mpi
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.reducer import BUCKET_NBYTES
from hpcvol.strategies.shards import ServedSums, Shards
from hpcvol.torch.served import ServedParameters

LAB = Path(__file__).resolve().parent.parent / "tests" / "lab"
RATE, DELAY = 1e9, 0.0002  # bit/s, s
TENSORS, TENSOR_NUMEL = 25, 2**20  # 100 MiB
REPETITIONS, QUICK_REPETITIONS = 15, 3
PIECE_NUMEL, DEPTH = 2**18, 8
LEARNING_RATE = 0.1
LIMIT_SECONDS = 900.0

Contender = Callable[[], Any]


def parameters_of(numels: Sequence[int]) -> list[tuple[str, nn.Parameter]]:
    """Return as many parameters, of ones."""
    return [(f"tensor {index}", nn.Parameter(torch.ones(numel))) for index, numel in enumerate(numels)]


class Served:
    """A server's share of a step, as a run with `servers = "all"` does it.

    Args:
        group: the ranks.
        tensors: how many tensors there are.
    """

    def __init__(self, group: Group, tensors: int) -> None:
        numels = [TENSOR_NUMEL] * tensors
        parameters = parameters_of(numels)
        shards = Shards(group, ParameterServer("all"))
        self._sums = ServedSums(shards, "auto", BUCKET_NBYTES)
        layout = Layout.of(numels, BUCKET_NBYTES // 4)
        self._reducer = self._sums.floats(layout, Memory(layout.numel, np.dtype(np.float32)))
        self._reducer.vector[:] = 1.0
        self._buckets = len(layout.buckets)
        self._parameters = [parameter for _, parameter in parameters]
        gradients: Any = SimpleNamespace(layouts=[(list(range(tensors)), layout)], unused=frozenset())
        optimizer = torch.optim.SGD(self._parameters, LEARNING_RATE)
        self._served = ServedParameters(shards, parameters, optimizer, gradients, self._sums)
        flat = torch.from_numpy(self._reducer.vector)
        self._views = [flat[start : start + numel] for start, numel in zip(layout.starts, layout.numels, strict=True)]
        self()
        for parameter in self._parameters:
            assert bool((parameter == 1 - LEARNING_RATE).all()), "a push was lost, or counted twice"

    def __call__(self) -> None:
        """Push and pull once. Collective."""
        for bucket in range(self._buckets):
            self._reducer.push(bucket)
        self._reducer.finish(2, 1)
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view
        self._served.apply(0.0, None)
        self._served.pull()

    def close(self) -> None:
        """End its thread."""
        self._sums.close()


class Messages:
    """The same by MPI's messages.

    Args:
        communicator: of two ranks.
        tensors: how many there are.
    """

    def __init__(self, communicator: MPI.Comm, tensors: int) -> None:
        self._communicator = communicator
        self._rank = communicator.Get_rank()
        numel = tensors * TENSOR_NUMEL
        self._gradients = np.ones(numel, np.float32)
        self._parameters = np.ones(numel, np.float32)
        self._received = np.zeros(numel, np.float32)
        half = numel // 2
        self._mine = slice(half) if self._rank == 0 else slice(half, numel)
        self._others = slice(half, numel) if self._rank == 0 else slice(half)
        whole = nn.Parameter(torch.from_numpy(self._parameters))
        part = nn.Parameter(torch.from_numpy(self._parameters[self._mine]))
        self._of_all, self._of_part = (torch.optim.SGD([one], LEARNING_RATE) for one in (whole, part))
        self._whole, self._part = whole, part
        self._halves = self._received[: numel - half], self._received[numel - half :]

    def sharded(self) -> None:
        """Each serves a half; whole messages."""
        self._sharded(self._communicator.Sendrecv)

    def in_pieces(self) -> None:
        """Each serves a half; eight pieces on their way."""
        self._sharded(self._piecewise)

    def _sharded(self, sendrecv: Callable[..., Any]) -> None:
        mine, others, peer = self._gradients[self._mine], self._gradients[self._others], 1 - self._rank
        received = self._received[: mine.size]
        sendrecv(others, peer, recvbuf=received, source=peer)
        received += mine
        received /= 2
        self._part.grad = torch.from_numpy(received)
        self._of_part.step()
        sendrecv(self._parameters[self._mine], peer, recvbuf=self._parameters[self._others], source=peer)

    def _piecewise(self, sendbuf: Any, dest: int, *, recvbuf: Any, source: int) -> None:
        waiting: list[MPI.Request] = []
        for start in range(0, max(sendbuf.size, recvbuf.size), PIECE_NUMEL):
            waiting.append(self._communicator.Irecv(recvbuf[start : start + PIECE_NUMEL], source))
            waiting.append(self._communicator.Isend(sendbuf[start : start + PIECE_NUMEL], dest))
            if len(waiting) >= 2 * DEPTH:
                MPI.Request.Waitall(waiting[:2])
                del waiting[:2]
        MPI.Request.Waitall(waiting)

    def one_server(self) -> None:
        """Rank 0 serves; both compute."""
        if self._rank:
            self._communicator.Send(self._gradients, 0)
            self._communicator.Recv(self._parameters, 0)
            return
        self._communicator.Recv(self._received, 1)
        self._received += self._gradients
        self._received /= 2
        self._whole.grad = torch.from_numpy(self._received)
        self._of_all.step()
        self._communicator.Send(self._parameters, 1)

    def bare(self) -> None:
        """As many bytes both ways as `sharded`, and nothing else."""
        self._bare(self._communicator.Sendrecv)

    def bare_in_pieces(self) -> None:
        """The same; eight pieces on their way."""
        self._bare(self._piecewise)

    def _bare(self, sendrecv: Callable[..., Any]) -> None:
        peer = 1 - self._rank
        for _ in range(2):
            sendrecv(self._gradients[self._others], peer, recvbuf=self._halves[0], source=peer)


class Copy:
    """A copy whose destination is in no cache.

    Args:
        tensors: how many there are.
    """

    def __init__(self, tensors: int) -> None:
        self._source = np.ones(tensors * TENSOR_NUMEL, np.float32)
        self._destinations = [np.zeros_like(self._source) for _ in range(2)]

    def __call__(self) -> None:
        """Copy once."""
        np.copyto(self._destinations[0], self._source)
        self._destinations.reverse()


def measure(group: Group, contenders: Mapping[str, Contender], repetitions: int) -> dict[str, list[float]]:
    """Return seconds of each contender, of the slower rank; they take turns. Collective."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, call in contenders.items():
            group.barrier()
            began = time.perf_counter()
            call()
            took = time.perf_counter() - began
            if repetition:  # the first one compiles, and touches memory
                seconds[name].append(max(group.gather_objects(took)))
    return seconds


def on_one_node(group: Group, options: argparse.Namespace) -> list[Row]:
    """Measure where both ranks share memory. Collective."""
    tensors = 5 if options.quick else TENSORS
    served, messages = Served(group, tensors), Messages(MPI.COMM_WORLD.Dup(), tensors)
    contenders = {
        "shared": served,
        "point_to_point": messages.sharded,
        "point_to_point, in pieces": messages.in_pieces,
        "one_server": messages.one_server,
        "memcpy": Copy(tensors),
    }
    seconds = measure(group, contenders, QUICK_REPETITIONS if options.quick else REPETITIONS)
    served.close()
    middle = {name: float(np.median(times)) for name, times in seconds.items()}
    peer = min(middle["point_to_point"], middle["point_to_point, in pieces"])
    nbytes = 4 * tensors * TENSOR_NUMEL
    return [
        Row(
            name,
            "push_pull",
            nbytes,
            group.size,
            seconds[name],
            {"of_memcpy": middle[name] / middle["memcpy"], "times_faster": peer / middle[name]},
        )
        for name in contenders
    ]


def between_hosts(group: Group, options: argparse.Namespace) -> list[Row]:
    """Measure where there are only messages. Collective."""
    tensors = 5 if options.quick else TENSORS
    served, messages = Served(group, tensors), Messages(MPI.COMM_WORLD.Dup(), tensors)
    contenders: dict[str, Contender] = {
        "messages": served,
        "sendrecv": messages.bare,
        "sendrecv, in pieces": messages.bare_in_pieces,
        "point_to_point": messages.sharded,
        "point_to_point, in pieces": messages.in_pieces,
    }
    seconds = measure(group, contenders, 1 if options.quick else 9)
    served.close()
    bare = min(float(np.median(seconds[name])) for name in ("sendrecv", "sendrecv, in pieces"))
    nbytes = 4 * tensors * TENSOR_NUMEL
    return [
        Row(name, "push_pull", nbytes, group.size, times, {"of_sendrecv": bare / float(np.median(times))})
        for name, times in seconds.items()
    ]


def on_hosts(argv: Sequence[str]) -> list[Row]:
    """Return the rows that ranks on two virtual hosts measure."""
    sys.path.insert(0, str(LAB))
    from virtual_hosts import virtual_hosts

    with tempfile.TemporaryDirectory() as folder, virtual_hosts(2, rate=RATE, delay=DELAY) as hosts:
        rows = Path(folder) / "rows"
        launch = hosts.launch_command({"h0": 1, "h1": 1}, [sys.executable, __file__, *argv, "--rows", str(rows)])
        done = hosts.run("h0", launch.argv, variables=launch.environment, seconds=LIMIT_SECONDS)
        if done.returncode:
            raise RuntimeError(f"the ranks failed\n{done.stdout}{done.stderr}")
        found: list[Row] = pickle.loads(rows.read_bytes())
        return found


def main() -> None:
    """Measure, and publish from rank 0."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--hosts", action="store_true", help="between two virtual hosts, which are started here")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hosts and options.rows is None:
        publish("parameter_server", on_hosts(sys.argv[1:]), options.json)
        return
    group = start_mpi()
    if group.size != 2:
        raise SystemExit(f"two ranks are compared, and there are {group.size}: mpiexec -n 2 python {sys.argv[0]}")
    torch.set_num_threads(1)
    rows = between_hosts(group, options) if options.rows else on_one_node(group, options)
    if group.rank == 0:
        if options.rows:
            options.rows.write_bytes(pickle.dumps(rows))
        else:
            publish("parameter_server", rows, options.json)


if __name__ == "__main__":
    main()
