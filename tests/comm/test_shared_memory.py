"""Memory that ranks of a node share, and doing without it."""

import errno
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from launched import RunRanks
from patience import until

from hpcvol.comm import Group, shared_memory
from hpcvol.comm.processes import Process
from hpcvol.comm.shared_memory import SharedMemory, allocate


def allocated(group: Group, nbytes: int) -> SharedMemory:
    memory = allocate(group, nbytes)
    assert memory is not None
    return memory


def refuse(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def descriptors_of_segments() -> int:
    return sum("/memfd:hpcvol " in os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


def descriptors_of(inode: int) -> int:
    return sum(os.stat(path).st_ino == inode for path in Path("/proc/self/fd").iterdir() if path.exists())


def maps_of(inodes: list[int]) -> int:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("/memfd:hpcvol " in line and int(line.split()[4]) in inodes for line in lines)


@pytest.mark.parametrize("nbytes", [1, 4096, 100_000])
def test_what_one_rank_writes_all_read(group: Group, nbytes: int) -> None:
    memory = allocated(group, nbytes)
    assert [part.size for part in memory.of] == [nbytes] * group.size
    assert not memory.mine.any()
    assert memory.mine.ctypes.data % 4096 == 0
    assert memory.addresses.tolist() == [part.ctypes.data for part in memory.of]
    group.barrier()
    for part in memory.of:
        part[group.rank % nbytes :: group.size] += 1 + group.rank if nbytes > 1 else 0
    group.barrier()
    if nbytes > 1:
        expected = 1 + np.arange(nbytes) % group.size
        for part in memory.of:
            np.testing.assert_array_equal(part, expected)


def test_each_rank_says_how_much_it_wants(group: Group) -> None:
    memory = allocated(group, 5000 * (group.rank + 1))
    assert [part.size for part in memory.of] == [5000 * (rank + 1) for rank in range(group.size)]


def test_own_memory_stays_where_it_is_when_peers_change(group: Group) -> None:
    memory = allocated(group, 8192)
    memory.mine[:] = group.rank + 1
    fewer = group.split(group.rank % 2)
    later = memory.with_peers_of(fewer)
    assert later is not None
    assert later.mine.ctypes.data == memory.mine.ctypes.data
    assert [part[0] for part in later.of] == [rank + 1 for rank in range(group.size) if rank % 2 == group.rank % 2]
    fewer.close()


def test_dropped_memory_is_given_back(group: Group) -> None:
    memory: SharedMemory | None = allocated(group, 1 << 20)
    assert memory is not None
    mine = os.fstat(memory._segment.fd).st_ino
    everybodys = group.gather_objects(mine)
    assert (descriptors_of(mine), maps_of(everybodys)) == (1, group.size)
    part = memory.of[-1][100:200]
    memory = None
    assert descriptors_of(mine) == 0
    assert maps_of(everybodys) == 1, "a view keeps its memory"
    assert not part.any()
    del part
    assert maps_of(everybodys) == 0


def test_all_do_without_where_one_rank_has_no_room(
    group: Group, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared_memory, "_told", False)
    if group.rank == group.size - 1:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    gc.collect()
    before = descriptors_of_segments()
    assert allocate(group, 4096) is None
    assert allocate(group, 4096) is None
    assert descriptors_of_segments() <= before
    said = capfd.readouterr().err
    who = group.name_of(group.size - 1)
    assert said.count("hpcvol: warning: no shared memory") == (group.rank == 0)
    assert group.rank > 0 or f"{who} cannot allocate 4096 bytes of it: [Errno 28] No space left on device" in said


def test_all_do_without_where_segments_cannot_be_opened(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_told", True)

    def closed(path: str) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    if group.rank == 0:
        monkeypatch.setattr(os, "readlink", closed)
    assert (allocate(group, 4096) is None) == (group.size > 1)


def test_the_segment_of_another_process_is_not_taken_for_a_peers(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another PID namespace, where the same number is another process, which has segments too."""
    monkeypatch.setattr(shared_memory, "_told", True)
    decoy = shared_memory.Segment(4096)

    class Elsewhere(shared_memory.Segment):
        def __init__(self, nbytes: int) -> None:
            super().__init__(nbytes)
            self.fd = decoy.fd

    if group.rank == group.size - 1:
        monkeypatch.setattr(shared_memory, "Segment", Elsewhere)
    assert (allocate(group, 4096) is None) == (group.size > 1)


SMALL_FILES = """
import resource, sys
import numpy as np
from hpcvol.collectives import allreduce
from hpcvol.comm import start
from hpcvol.comm.shared_memory import allocate
group = start()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
fits, too_much = allocate(group, 4096), allocate(group, 64 << 20)
vector = np.ones(10, np.float32)
allreduce(group, vector)
sys.stdout.write(f"{group.rank}: {fits is not None} {too_much is None} {vector[0]:g}\\n")
"""


def test_a_limit_is_an_answer_and_no_signal(run_ranks: RunRanks) -> None:
    ended = run_ranks(2, ["-c", SMALL_FILES])
    assert ended.returncode == 0, ended.stderr
    assert "0: True True 2" in ended.stdout
    assert "1: True True 2" in ended.stdout
    assert ended.stderr.count("hpcvol: warning: no shared memory") == 1


FULL_SHM = """
import sys
from hpcvol.comm.shared_memory import Segment
segment = Segment(8 << 20)
segment.memory[:] = 1
sys.stdout.write(f"ready {int(segment.memory.sum())}\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def test_it_has_no_name_and_ends_with_its_process() -> None:
    before = set(os.listdir("/dev/shm"))
    with subprocess.Popen(
        [sys.executable, "-c", FULL_SHM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == f"ready {8 << 20}\n"
        ours = [path for path in Path(f"/proc/{holder.pid}/fd").iterdir() if "memfd:hpcvol" in os.readlink(path)]
        assert len(ours) == 1
        assert set(os.listdir("/dev/shm")) <= before
        used = shared_kilobytes()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert until(lambda: shared_kilobytes() < used - 6 * 1024), "its memory is free again"


def shared_kilobytes() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:"))
    return int(line.split()[1])


def test_a_process_is_told_from_its_successor() -> None:
    me = Process.current()
    assert me.alive()
    assert not Process(me.pid, me.started + 1).alive()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        other = Process(child.pid, started)
        assert other.alive()
        child.kill()
        assert until(lambda: not other.alive()), "a zombie is dead"
    assert not other.alive()
