"""Passing files from one rank to others that do not see them, in pieces, along a chain of those that want them."""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpcvol.comm.agreement import agree, together
from hpcvol.comm.calls import Call
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Message, Messages
from hpcvol.comm.vectors import Vector
from hpcvol.durable import create_aside, publish, remove_stale_asides

# A piece that is passed on while it is in the cache: on a link of 1 Gbit/s pieces of 4 MiB took a fifth longer.
PIECE_NBYTES = 2**20
NUM_BUFFERS = 8
SYNC_NBYTES = 8 * 2**20
# One call, which members may wait in for `comm.warn_seconds`.
PORTION_NBYTES = 2**28


def pass_file(group: Group, root: int, source: Path, target: Path | None) -> None:
    """Copy the file `source` of rank `root` to `target` on every rank that names one. Collective.

    A target has its name when it is whole and on disk; after an error none has. Memory: 8 MiB on `root` and
    where it is wanted. Each of these sends and receives the file at most once, all at the same time.

    Args:
        group: all of its ranks call this with the same `root`.
        root: the rank that has the file.
        source: the file; looked at on `root` only.
        target: where it shall lie on this rank, replacing what is there; None where it is not wanted.

    Raises:
        MemberError: it cannot be read or written somewhere; the same on every rank.
    """
    doing = f"passing {source.name} from {group.name_of(root)}"
    aside: Path | None = None
    try:
        with ExitStack() as stack:
            reader: BinaryIO | None = None
            writer: FileIO | None = None
            nbytes = 0
            with together(group, doing):
                if group.rank == root:
                    reader = stack.enter_context(source.open("rb"))
                    nbytes = source.stat().st_size
                if target is not None:
                    remove_stale_asides(target.parent)
                    aside = create_aside(target)
                    # Without a buffer, because one that is written on closing fails on this rank alone.
                    writer = stack.enter_context(aside.open("wb", buffering=0))
            error = _pass_pieces(group, root, group.broadcast_object(nbytes, root), reader, writer)
        agree(group, error, doing)
        with together(group, doing):
            if aside is not None and target is not None:
                publish(aside, target)
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def _pass_pieces(
    group: Group, root: int, nbytes: int, reader: BinaryIO | None, writer: FileIO | None
) -> OSError | None:
    """Pass all pieces, also after an error, which comes back: the others go on waiting for them."""
    wanted = group.gather_objects(writer is not None)
    chain = [root, *(rank for rank, wants in enumerate(wanted) if wants and rank != root)]
    buffers = [np.zeros(min(nbytes, PIECE_NBYTES), np.uint8) for _ in range(NUM_BUFFERS if group.rank in chain else 0)]
    with ThreadPoolExecutor(1) as thread:
        disk = _Disk(thread, reader, writer)
        for begin in range(0, nbytes, PORTION_NBYTES):
            portion = min(PORTION_NBYTES, nbytes - begin)
            with group.calling(Call.of("broadcast", np.dtype(np.uint8), portion)):
                if buffers and (len(chain) > 1 or disk.writes):
                    _pass_portion(group, chain, portion, buffers, disk)
    return disk.error


def _pass_portion(group: Group, chain: list[int], nbytes: int, buffers: list[Vector], disk: "_Disk") -> None:
    """Pass a portion along `chain`, from each rank to the next.

    While pieces travel, the next ones are read or expected, and those that have come are passed on and written.
    """
    place = chain.index(group.rank)
    source, destination = ([None, *chain][place], [*chain, None][place + 1])
    sizes = [min(PIECE_NBYTES, nbytes - start) for start in range(0, nbytes, PIECE_NBYTES)]
    parts = [buffers[number % NUM_BUFFERS][:size] for number, size in enumerate(sizes)]
    filled: list[Message | Future[None]] = []
    used: list[list[Message | Future[None]]] = []

    with Messages(group) as messages:

        def wait(thing: Message | Future[None]) -> None:
            messages.wait(thing) if isinstance(thing, Message) else thing.result()

        def fill_next() -> None:
            number = len(filled)
            for user in used[number - NUM_BUFFERS] if number >= NUM_BUFFERS else ():
                wait(user)
            part = parts[number]
            filled.append(disk.read(part) if source is None else messages.receive(part, source))

        for _ in parts[: NUM_BUFFERS // 2]:
            fill_next()
        for number, part in enumerate(parts):
            wait(filled[number])
            used.append([messages.send(part, destination)] if destination is not None else [])
            if disk.writes:
                used[number].append(disk.write(part))
            if len(filled) < len(parts):
                fill_next()
        for user in itertools.chain.from_iterable(used[-NUM_BUFFERS:]):
            wait(user)


class _Disk:
    """What is read and written in a thread, in order; nothing more after the first error."""

    def __init__(self, thread: ThreadPoolExecutor, reader: BinaryIO | None, writer: FileIO | None) -> None:
        self._thread = thread
        self._reader = reader
        self._writer = writer
        self.writes = writer is not None
        self.error: OSError | None = None

    def read(self, part: Vector) -> Future[None]:
        return self._thread.submit(self._run, _read_exactly, self._reader, part)

    def write(self, part: Vector) -> Future[None]:
        return self._thread.submit(self._run, _write_all, self._writer, part.data)

    def _run(self, function: Callable[..., object], *arguments: object) -> None:
        if self.error is None:
            try:
                function(*arguments)
            except OSError as error:
                self.error = error


def _read_exactly(reader: BinaryIO, part: Vector) -> None:
    if reader.readinto(part.data) != part.size:  # type: ignore[attr-defined]
        raise OSError("the file became shorter while it was read")


def _write_all(writer: FileIO, data: memoryview) -> None:
    begin = writer.tell()
    while len(data):
        data = data[writer.write(data) :]
    if begin // SYNC_NBYTES != writer.tell() // SYNC_NBYTES:
        os.fdatasync(writer.fileno())  # now, or all of it is waited for at the end
