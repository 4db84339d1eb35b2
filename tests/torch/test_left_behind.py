"""Many runs in one process, one after another: none leaves descriptors, threads or memory behind."""

import gc
import os
import threading
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from training import Regression, built, make_run, numbers, sgd, train
from two_hosts import as_hosts

from hpcvol.comm import Group
from hpcvol.torch.settings import Settings

RUNS = 50
WARM_RUNS = 10
HIDDEN = 2**13  # 256 KiB of gradients: with its integers 40 runs would leave 30 MiB behind
SLACK_NBYTES = 8 * 2**20


class Held(NamedTuple):
    """What a process holds."""

    descriptors: int
    threads: int
    segments: int


def held() -> Held:
    gc.collect()
    return Held(
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        Path("/proc/self/maps").read_text().count("/memfd:hpcvol"),
    )


@pytest.mark.limit_seconds(120)
@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("sum", ["exact", "float"])
def test_runs_leave_nothing_behind(group: Group, sum: str, hosts: int) -> None:
    samples = numbers(16)

    def one_run(over: Group) -> None:
        run = make_run(over, built(lambda: Regression(hidden=HIDDEN)), samples, Settings(8, 2, sum=sum), sgd)
        train(run, 1)
        run.close()

    with as_hosts(group, [rank % hosts for rank in range(group.size)]) as spread:
        for _ in range(WARM_RUNS):
            one_run(spread)
        before, memory = held(), psutil.Process().memory_info().rss
        for _ in range(RUNS - WARM_RUNS):
            one_run(spread)
        after, more = held(), psutil.Process().memory_info().rss - memory
    assert after == before
    assert more < SLACK_NBYTES, f"{more / 2**20:.1f} MiB more after {RUNS - WARM_RUNS} runs"
