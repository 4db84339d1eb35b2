"""Where a member computes and with how many threads."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hpcvol.comm import Group
from hpcvol.errors import ConfigError
from hpcvol.torch.device import check_device, choose_device, choose_threads


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_exact_sum_computes_with_one_thread(group: Group) -> None:
    """However many members share a node: one thread and two differ in their bits."""
    assert choose_threads("auto", True, group) == torch.get_num_threads() == 1


def test_the_float_sum_shares_out_the_nodes_cores(group: Group) -> None:
    cores = len(os.sched_getaffinity(0))
    assert choose_threads("auto", False, group) == torch.get_num_threads() == max(1, cores // group.size)


def test_threads_can_be_said(group: Group) -> None:
    assert choose_threads(2, True, group) == torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [0, -1, "many", 1.5])
def test_threads_that_are_none_are_refused(group: Group, threads: Any) -> None:
    with pytest.raises(ConfigError, match=r"threads = .* expected \"auto\" or a positive integer"):
        choose_threads(threads, True, group)


def test_the_cpu_is_the_cpu(group: Group) -> None:
    assert choose_device("cpu", group) == torch.device("cpu")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'device = "tpu": expected "auto", "cpu" or "cuda"'):
        check_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(group: Group) -> None:
    assert choose_device("auto", group) == torch.device("cpu")
    with pytest.raises(ConfigError, match="no GPU that torch can use") as caught:
        choose_device("cuda", group)
    assert caught.value.everywhere


def test_more_members_than_gpus_are_refused_unless_asked_for(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU a node, and a machine that only says so."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cuda", group, share=True) == torch.device("cuda", 0)
    assert chosen == [torch.device("cuda", 0)]
    if group.size == 1:
        assert choose_device("auto", group) == torch.device("cuda", 0)
        return
    assert choose_device("auto", group) == torch.device("cpu")
    with pytest.raises(ConfigError, match=f"1 GPUs for {group.size} members.*share_devices"):
        choose_device("cuda", group)
