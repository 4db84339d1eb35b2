"""The digest of a version of a model: of all parameters and buffers, and the same however many members compute it.

The state is cut into slices of at most SLICE_NBYTES, each of one tensor, in the order of the tensors' names. The digest
is the sum modulo 2^128 of xxh3_128(slice i, seed = i): members take slices each, and what they found is added up in any
order. It tells that a checkpoint is another version than its ledger says; it is no protection against somebody who
makes two states of one digest on purpose.
"""

from collections.abc import Iterable, Mapping

import torch
import xxhash

from hpcvol.train.snapshot import untied

SLICE_NBYTES = 1 << 22
_MODULUS = 1 << 128


def part_of_digest(state: Mapping[str, torch.Tensor], worker: int, workers: int) -> int:
    """Return what worker `worker` of `workers` adds to the digest of `state`. Local.

    Args:
        state: a model's `state_dict()`; tensors on any device.
        worker: from 0; the bytes are shared out evenly, as far as slices allow.
        workers: how many there are.
    """
    tensors = [state.detach().reshape(-1) for _, state in sorted(untied(state).items())]
    total_nbytes = sum(tensor.nbytes for tensor in tensors)
    total, index, position = 0, 0, 0
    for flat in tensors:
        step = SLICE_NBYTES // flat.element_size()
        for begin in range(0, flat.numel(), step):
            if position * workers // total_nbytes == worker:
                data = flat[begin : begin + step].contiguous().cpu().view(torch.uint8).numpy()
                total += xxhash.xxh3_128_intdigest(data.data, seed=index)
            position += min(step, flat.numel() - begin) * flat.element_size()
            index += 1
    return total % _MODULUS


def digest_from(parts: Iterable[int]) -> str:
    """Return the digest that the parts of all workers make: 32 hexadecimal digits."""
    return f"{sum(parts) % _MODULUS:032x}"


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the digest of `state`. Local."""
    return digest_from([part_of_digest(state, 0, 1)])
