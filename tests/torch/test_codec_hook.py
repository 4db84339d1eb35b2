"""Codecs as hooks of torch's own DistributedDataParallel, over gloo."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hpcvol
from hpcvol.comm import Group
from hpcvol.errors import ConfigError

STEPS = 4


@pytest.fixture
def gloo(group: Group, shared_path: Path) -> Iterator[Group]:
    """Torch's process group over the ranks of `group`."""
    store = dist.FileStore(str(shared_path / "store"), group.size)
    dist.init_process_group("gloo", store=store, rank=group.rank, world_size=group.size)
    yield group
    dist.destroy_process_group()


def model_of(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 20)).to(dtype)


def batch_of(rank: int, step: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(8, 40, generator=torch.Generator().manual_seed(100 * step + rank), dtype=dtype)


def gradients(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    model.zero_grad()
    model(x).square().mean().backward()
    return np.concatenate([parameter.grad.numpy().ravel() for parameter in model.parameters()])


@pytest.mark.limit_seconds(240)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("codec", ["bf16", "int8", "topk:0.1+int8", "randomk:0.2", "powersgd:2"])
def test_nothing_is_lost_and_all_ranks_have_the_same(gloo: Group, codec: str, dtype: torch.dtype) -> None:
    """Also where DDP makes its buckets anew, after the first step: several, of some parameters each."""
    replicated = DistributedDataParallel(model_of(dtype), bucket_cap_mb=0.001)
    state, hook = hpcvol.codec_hook(codec)
    replicated.register_comm_hook(state, hook)
    summed, wanted = 0.0, 0.0
    for step in range(STEPS):
        found = gradients(replicated, batch_of(gloo.rank, step, dtype))
        assert gloo.gather_objects(found.tobytes()) == [found.tobytes()] * gloo.size
        plain = model_of(dtype)
        summed += found.sum()
        wanted += np.mean([gradients(plain, batch_of(rank, step, dtype)).sum() for rank in range(gloo.size)])
    assert len(state._buckets) > 1
    kept = sum(one.sum() for one in state.residuals.values())
    tolerance = 5e-3 if codec == "bf16" else 1e-5  # without feedback rounding is lost
    assert summed + sum(gloo.gather_objects(kept)) == pytest.approx(wanted, abs=tolerance, rel=tolerance)


@pytest.mark.limit_seconds(240)
def test_momentum_goes_along_when_buckets_are_made_anew(gloo: Group) -> None:
    """All that was sent and kept is what momentum has made of all gradients, by parameter."""
    replicated = DistributedDataParallel(model_of(torch.float64), bucket_cap_mb=0.001)
    state, hook = hpcvol.codec_hook("topk:0.1+dgc:2")
    replicated.register_comm_hook(state, hook)
    parameters = list(replicated.parameters())
    sent = [np.zeros(parameter.numel()) for parameter in parameters]
    velocities, unsent = [one.copy() for one in sent], [one.copy() for one in sent]
    for step in range(STEPS):
        gradients(replicated, batch_of(gloo.rank, step, torch.float64))
        plain = model_of(torch.float64)
        gradients(plain, batch_of(gloo.rank, step, torch.float64))
        for place, (parameter, alone) in enumerate(zip(parameters, plain.parameters(), strict=True)):
            kept, velocity = state.residuals[id(parameter)]
            velocities[place] = 0.9 * velocities[place] + alone.grad.numpy().ravel() / gloo.size
            unsent[place] += velocities[place]
            selected = (velocity == 0) & (velocities[place] != 0)
            velocities[place][selected] = 0
            np.testing.assert_allclose(velocity, velocities[place], atol=1e-15)
            sent[place] += parameter.grad.numpy().ravel()
            unsent[place][selected] = 0
            np.testing.assert_allclose(kept, unsent[place], atol=1e-15)
            if gloo.size > 1:
                assert 0 < selected.sum() < selected.size or selected.size < 100
    assert len(state._buckets) > 1
    assert any(one.any() for one in unsent)


def test_what_is_no_codec_is_refused() -> None:
    with pytest.raises(ConfigError, match="no codec is called 'int9'"):
        hpcvol.codec_hook("int9")
    with pytest.raises(ConfigError, match="name a codec"):
        hpcvol.codec_hook("auto")
