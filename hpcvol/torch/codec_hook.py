"""Codecs for torch's own DistributedDataParallel: a communication hook for each."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist

from hpcvol.codecs import AnyCodec, Codec, Floats, LowRank, Momentum, Seeds, parse
from hpcvol.collectives.low_rank import LowRankStep
from hpcvol.errors import ConfigError
from hpcvol.strategies.encoded_floats import matrices_of

Hook: TypeAlias = Callable[["HookState", Any], torch.futures.Future[torch.Tensor]]

# In front of a payload: how long it is. Payloads of all ranks are gathered with room for the longest.
_HEADER_NBYTES = 64


class HookState:
    """What a hook keeps from step to step, by bucket. Made by `codec_hook`, held by the model."""

    def __init__(self, codec: Codec | LowRank, process_group: dist.ProcessGroup | None, seed: int) -> None:
        self.codec = codec
        self.process_group = process_group
        self.seed = seed
        self._buckets: dict[int, _Bucket] = {}
        self._left: dict[int, Floats] = {}
        self._step = 0

    @property
    def residuals(self) -> dict[int, Floats]:
        """What is kept of each parameter's gradient, by its `id`: rows, the first of which is what was not sent."""
        return self._left | {key: one for bucket in self._buckets.values() for key, one in bucket.residuals().items()}

    def bucket(self, bucket: Any, like: Floats) -> "_Bucket":
        """Return what is kept of a bucket. DDP makes all buckets anew after the first step: residuals go along."""
        parameters = bucket.parameters()
        found = self._buckets.get(bucket.index())
        if found is not None and [id(one) for one in parameters] != [id(one) for one in found.parameters]:
            self._left = self.residuals
            self._step = max(one.step for one in self._buckets.values())
            self._buckets.clear()
            found = None
        if found is None:
            found = self._buckets[bucket.index()] = _Bucket(self.codec, parameters, like, self._step)
            for key, residual in found.residuals().items():
                residual[:] = self._left.pop(key, 0)
        return found


class _Bucket:
    """What is kept of a bucket: its residual, and what low rank needs besides."""

    def __init__(self, codec: Codec | LowRank, parameters: list[torch.Tensor], like: Floats, step: int) -> None:
        self.parameters = parameters
        self.residual = np.zeros(max(1, codec.residual_rows) * like.size, like.dtype)
        self._numel = like.size
        self.step = step
        starts = np.cumsum([0, *(one.numel() for one in parameters)]).tolist()
        self._places = {id(one): (start, start + one.numel()) for one, start in zip(parameters, starts, strict=False)}
        self.low_rank: LowRankStep | None = None
        if isinstance(codec, LowRank):
            shapes = [(start, tuple(one.shape)) for start, one in zip(starts, parameters, strict=False)]
            self.low_rank = LowRankStep(codec, like.size, like.dtype, matrices_of(shapes))
            self.factors = np.zeros(self.low_rank.factors_numel, like.dtype)

    def residuals(self) -> dict[int, Floats]:
        """Return the residual's parts, views of all of its rows, by the `id` of their parameters."""
        rows = self.residual.reshape(-1, self._numel)
        return {key: rows[:, start:stop] for key, (start, stop) in self._places.items()}


def codec_hook(
    codec: AnyCodec, process_group: dist.ProcessGroup | None = None, seed: int = 0
) -> tuple[HookState, Hook]:
    """Return a state and a hook for DistributedDataParallel, which then sends gradients as `codec` encodes them. Local.

    Payloads of all ranks are gathered, and added in the order of ranks: all end with the same bits. PowerSGD sums its
    thin matrices by all-reduces. Error feedback is kept in the state. Gradients are float32 or float64 on the CPU;
    those on a GPU are copied there and back, which takes a process group that has a backend for the CPU too.

    Args:
        codec: as `strategy.codec`, but for "none" and "auto"; or a value of `hpcvol.codecs`.
        process_group: of the model; the default group by default.
        seed: of what is drawn; the same on all ranks.

    Raises:
        ConfigError: there is no such codec.

    Example:
        >>> model = DistributedDataParallel(model)  # doctest: +SKIP
        >>> model.register_comm_hook(*hpcvol.codec_hook("int8"))  # doctest: +SKIP
    """
    found = parse(codec)
    if found is None:
        raise ConfigError(f'codec_hook({codec!r}): name a codec, such as "int8", or leave the hook out')
    return HookState(found, process_group, seed), _hook


def _hook(
    state: HookState,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # where torch has no distributed package; DDP asks for it
) -> torch.futures.Future[torch.Tensor]:
    buffer = bucket.buffer()
    if buffer.dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"codec_hook: gradients are {buffer.dtype}, and codecs take float32 or float64")
    if buffer.device.type != "cpu":
        _check_backend(state)
    vector = buffer.detach().cpu().contiguous().numpy()
    vector /= dist.get_world_size(state.process_group)
    kept = state.bucket(bucket, vector)
    step, kept.step = kept.step, kept.step + 1
    if kept.low_rank is not None:
        # All in order, before the next bucket's: over gloo ranks pair collective calls by their order.
        kept.low_rank.run(vector, kept.residual, kept.factors, state.seed, step, partial(_begin_to_sum, state))
        return _done(buffer, vector)
    assert not isinstance(state.codec, LowRank)
    return _gather(state, state.codec, kept, step, vector, buffer)


def _begin_to_sum(state: HookState, _: int, thin: Floats) -> Callable[[], None]:
    work = dist.all_reduce(torch.from_numpy(thin), group=state.process_group, async_op=True)
    assert work is not None

    def wait() -> None:
        work.wait()

    return wait


def _check_backend(state: HookState) -> None:
    """Refuse a process group that cannot send what lies in main memory."""
    if "cpu" not in dist.get_backend_config(state.process_group):
        raise ConfigError(
            "codec_hook encodes on the CPU, and the process group has no backend for it: give init_process_group "
            'backend = "cpu:gloo,cuda:nccl", or codec_hook a process_group of gloo'
        )


def _gather(
    state: HookState, codec: Codec, kept: _Bucket, step: int, vector: Floats, buffer: torch.Tensor
) -> torch.futures.Future[torch.Tensor]:
    ranks, rank = dist.get_world_size(state.process_group), dist.get_rank(state.process_group)
    seeds = [Seeds.of(state.seed, step, one) for one in range(ranks)]
    sized = codec.at(step) if isinstance(codec, Momentum) else codec
    rooms = [torch.zeros(_HEADER_NBYTES + sized.room(vector.size, vector.dtype), dtype=torch.uint8) for _ in seeds]
    mine = rooms[rank].numpy()
    residual = kept.residual if codec.residual_rows else None
    mine[:8].view(np.int64)[0] = codec.encode(vector, residual, seeds[rank], mine[_HEADER_NBYTES:])
    gathering = dist.all_gather(rooms, rooms[rank].clone(), group=state.process_group, async_op=True)

    def decode(_: Any) -> torch.Tensor:
        vector.fill(0)
        for one, room in zip(seeds, rooms, strict=True):
            payload = room.numpy()
            used = int(payload[:8].view(np.int64)[0])
            codec.accumulate(payload[_HEADER_NBYTES : _HEADER_NBYTES + used], one, vector)
        return _back(buffer, vector)

    assert gathering is not None
    future: torch.futures.Future[torch.Tensor] = gathering.get_future().then(decode)
    return future


def _done(buffer: torch.Tensor, vector: Floats) -> torch.futures.Future[torch.Tensor]:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(_back(buffer, vector))
    return future


def _back(buffer: torch.Tensor, vector: Floats) -> torch.Tensor:
    found = torch.from_numpy(vector)
    if buffer.data_ptr() != found.data_ptr():
        buffer.copy_(found)
    return buffer
