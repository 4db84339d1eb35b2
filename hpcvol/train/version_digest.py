"""The digest of a version: what parameters and buffers hold after a step, found by all members together.

They are cut into blocks, and the digest is the sum of the blocks' xxh3, each seeded by the place of its block, modulo
2^64. So each member hashes some blocks, and it does not matter who hashes which.
"""

from collections.abc import Iterator

import torch
import xxhash

from hpcvol.elastic.bag import deal

_BLOCK_NBYTES = 2**20
_MODULUS = 2**64


def digest_share(model: torch.nn.Module, worker: int, workers: int) -> int:
    """Return what worker `worker` of `workers` adds to the digest of `model` as it is now. Local."""
    mine = deal(list(_blocks(model)), workers, worker)
    return (
        sum(xxhash.xxh3_64_intdigest(_bytes(tensor[start:stop]), place) for place, tensor, start, stop in mine)
        % _MODULUS
    )


def combine(shares: list[int]) -> str:
    """Return the digest, 16 hexadecimal digits, from the shares of all workers."""
    return f"{sum(shares) % _MODULUS:016x}"


def _blocks(model: torch.nn.Module) -> Iterator[tuple[int, torch.Tensor, int, int]]:
    place = 0
    for tensor in [*model.parameters(), *model.buffers()]:
        flat = tensor.detach().reshape(-1)
        numel = max(1, _BLOCK_NBYTES // flat.itemsize)
        for start in range(0, flat.numel(), numel):
            yield place, flat, start, min(start + numel, flat.numel())
            place += 1


def _bytes(part: torch.Tensor) -> memoryview:
    return part.cpu().contiguous().view(torch.uint8).numpy().data
