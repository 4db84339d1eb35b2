"""Passing files from one rank to others that do not see them, in pieces."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpcvol.comm.agreement import agree, together
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Vector, copy_from_root
from hpcvol.durable import create_aside, publish, remove_stale_asides

PIECE_NBYTES = 16 * 2**20


def pass_file(group: Group, root: int, source: Path, target: Path | None) -> None:
    """Copy the file `source` of rank `root` to `target` on every rank that names one. Collective.

    A target has its name when it is whole and on disk; after an error none has. Memory: two pieces of 16 MiB a rank.

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
    """Pass all pieces, also after an error, which comes back: the others go on waiting for them.

    While one piece travels a thread reads the next, or writes the one before: there are two buffers.
    """
    buffers = [np.zeros(min(nbytes, PIECE_NBYTES), np.uint8) for _ in range(2)]
    starts = range(0, nbytes, PIECE_NBYTES)
    parts = [buffers[i % 2][: min(PIECE_NBYTES, nbytes - start)] for i, start in enumerate(starts)]
    with ThreadPoolExecutor(1) as thread:
        disk = _Disk(thread)
        if reader is not None and parts:
            disk.do(_read_exactly, reader, parts[0])
        for i, part in enumerate(parts):
            disk.wait(unless_last=reader is None)  # which is the write of the other buffer
            if reader is not None and i + 1 < len(parts):
                disk.do(_read_exactly, reader, parts[i + 1])
            copy_from_root(group, part, root)
            if writer is not None:
                disk.do(_write_all, writer, part.data)
        disk.wait()
    return disk.error


class _Disk:
    """What is read and written in the thread, in order; nothing more after the first error."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._jobs: list[Future[None]] = []
        self.error: OSError | None = None

    def do(self, function: Callable[..., object], *arguments: object) -> None:
        self._jobs.append(self._thread.submit(self._run, function, *arguments))

    def wait(self, *, unless_last: bool = False) -> None:
        """Wait until all is done that was asked for, or all but the last."""
        last = self._jobs[-1:] if unless_last else []
        for job in self._jobs[: len(self._jobs) - len(last)]:
            job.result()
        self._jobs = last

    def _run(self, function: Callable[..., object], *arguments: object) -> None:
        if self.error is None:
            try:
                function(*arguments)
            except OSError as error:
                self.error = error


def _read_exactly(reader: BinaryIO, part: Vector) -> None:
    data = reader.read(part.size)
    if len(data) != part.size:
        raise OSError("the file became shorter while it was read")
    part[:] = np.frombuffer(data, np.uint8)


def _write_all(writer: FileIO, data: memoryview) -> None:
    while len(data):
        data = data[writer.write(data) :]
