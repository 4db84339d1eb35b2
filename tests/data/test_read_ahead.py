"""Shards that are announced come into the page cache without being read."""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from patience import until

from hpcvol.data.read_ahead import ReadAhead

pytestmark = pytest.mark.without_mpi

PAGE = mmap.PAGESIZE


def share_in_memory(path: Path) -> float:
    """Return which share of a file's pages is in the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // PAGE))()
        start = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages) == 0
        del start
        return float((np.frombuffer(pages, np.uint8) & 1).mean())


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files of 8 MiB on a disk and not in memory."""
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        path.write_bytes(os.urandom(8 << 20))
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    if share_in_memory(paths[0]) > 0.1:
        pytest.skip("the folder of temporary files lies in memory")
    return paths


def test_what_is_wanted_is_read_and_nothing_else(files: list[Path]) -> None:
    ahead = ReadAhead(files)
    ahead.want([1])
    assert until(lambda: share_in_memory(files[1]) == 1.0)
    assert share_in_memory(files[0]) < 0.1
    ahead.want([1, 0])
    assert until(lambda: share_in_memory(files[0]) == 1.0)


def test_a_file_that_is_gone_does_not_end_it(files: list[Path]) -> None:
    files[0].unlink()
    ahead = ReadAhead(files)
    ahead.want([0, 1])
    assert until(lambda: share_in_memory(files[1]) == 1.0)
