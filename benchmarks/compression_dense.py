"""The cases of compression.py in which every element is kept: casts and quantisers.

Torch and NumPy write to memory that they have written before wherever they offer to.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch

from hpcvol.kernels import cast, quantise

Contenders = dict[str, Callable[[Any, Any], Any]]

BLOCK = quantise.INT8.block_numel
HALVES = {
    "bf16": (cast.BFLOAT16, torch.bfloat16, np.dtype(ml_dtypes.bfloat16)),
    "fp16": (cast.FLOAT16, torch.float16, np.dtype(np.float16)),
}
BIT_VALUES = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8)


def half(name: str, numel: int) -> Contenders:
    """Cast."""
    number_format, torch_dtype, numpy_dtype = HALVES[name]
    codes = itertools.cycle([np.zeros(numel, np.uint16) for _ in range(2)])
    tensors = itertools.cycle([torch.zeros(numel, dtype=torch_dtype) for _ in range(2)])
    return {
        "hpcvol": lambda x, _: cast.encode(x, number_format, next(codes)),
        "torch": lambda x, _: next(tensors).copy_(torch.from_numpy(x)),
        "numpy": lambda x, _: np.copyto(next(codes).view(numpy_dtype), x, casting="same_kind"),
    }


def half_decode(name: str, numel: int) -> Contenders:
    """Add what was cast."""
    number_format, torch_dtype, numpy_dtype = HALVES[name]
    x = np.random.default_rng(1).standard_normal(numel, np.float32)
    payloads = [(x * sign).astype(numpy_dtype).view(np.uint16) for sign in (1, -1)]
    tensors = itertools.cycle([torch.from_numpy(x * sign).to(torch_dtype) for sign in (1, -1)])
    codes = itertools.cycle(payloads)
    return {
        "hpcvol": lambda _, out: cast.accumulate(next(codes), number_format, out),
        "torch": lambda _, out: torch.from_numpy(out).add_(next(tensors)),
        "numpy": lambda _, out: np.add(out, next(codes).view(numpy_dtype), out=out),
    }


def feedback(quantiser: quantise.Quantiser, torch_call: Any, numpy_call: Any, numel: int) -> Contenders:
    """Quantise with error feedback."""
    payloads = itertools.cycle([_payload(quantiser, numel) for _ in range(2)])
    return {
        "hpcvol": lambda x, residual: quantise.encode_with_feedback(x, residual, quantiser, 0, *next(payloads)),
        "torch": lambda x, residual: torch_call(torch.from_numpy(x), torch.from_numpy(residual)),
        "numpy": numpy_call,
    }


def feedback_decode(quantiser: quantise.Quantiser, torch_call: Any, numpy_call: Any, numel: int) -> Contenders:
    """Add what was quantised."""
    pairs = [_payload(quantiser, numel) for _ in range(2)]
    for seed, (codes, scales) in enumerate(pairs):
        x = np.random.default_rng(seed).standard_normal(numel, np.float32)
        quantise.encode(x, quantiser, 0, codes, scales)
    payloads = itertools.cycle(pairs)
    tensors = itertools.cycle([(torch.from_numpy(codes), torch.from_numpy(scales)) for codes, scales in pairs])
    return {
        "hpcvol": lambda _, out: quantise.accumulate(*next(payloads), quantiser, out),
        "torch": lambda _, out: torch_call(*next(tensors), torch.from_numpy(out)),
        "numpy": lambda _, out: numpy_call(*next(payloads), out),
    }


def _payload(quantiser: quantise.Quantiser, numel: int) -> Any:
    codes = np.zeros(quantise.code_nbytes(numel, quantiser), np.uint8)
    return codes, np.zeros(quantise.num_blocks(numel, quantiser), np.float32)


def int8_torch(x: torch.Tensor, residual: torch.Tensor) -> Any:
    """Return levels and scales, and change `residual`; the number of elements is a multiple of the block's."""
    blocks = residual.add_(x).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True).div_(127)
    levels = (blocks / scales).round_()
    blocks.addcmul_(levels, scales, value=-1)
    return levels.to(torch.int8), scales


def int8_numpy(x: Any, residual: Any) -> Any:
    """Do the same."""
    residual += x
    blocks = residual.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    levels = np.rint(blocks / scales)
    blocks -= levels * scales
    return levels.astype(np.int8), scales


def int8_decode_torch(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    """Add levels times scales to `out`."""
    out.view(-1, BLOCK).addcmul_(codes.view(torch.int8).view(-1, BLOCK).to(torch.float32), scales[:, None])


def int8_decode_numpy(codes: Any, scales: Any, out: Any) -> None:
    """Do the same."""
    blocks = out.reshape(-1, BLOCK)
    blocks += codes.view(np.int8).reshape(-1, BLOCK) * scales[:, None]


def sign_torch(x: torch.Tensor, residual: torch.Tensor) -> Any:
    """Return bits and scales, and change `residual`."""
    blocks = residual.add_(x).view(-1, BLOCK)
    scales = blocks.abs().mean(dim=1, keepdim=True)
    negative = blocks < 0
    blocks.sub_(torch.where(negative, -scales, scales))
    return (negative.view(-1, 8) * BIT_VALUES).sum(dim=1, dtype=torch.uint8), scales


def sign_numpy(x: Any, residual: Any) -> Any:
    """Do the same."""
    residual += x
    blocks = residual.reshape(-1, BLOCK)
    scales = np.abs(blocks).mean(axis=1, keepdims=True)
    negative = blocks < 0
    blocks -= np.where(negative, -scales, scales)
    return np.packbits(negative, bitorder="little"), scales


def sign_decode_torch(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    """Add plus or minus the scales to `out`."""
    negative = (codes[:, None] & BIT_VALUES).view(-1, BLOCK) != 0
    out.view(-1, BLOCK).add_(torch.where(negative, -scales[:, None], scales[:, None]))


def sign_decode_numpy(codes: Any, scales: Any, out: Any) -> None:
    """Do the same."""
    negative = np.unpackbits(codes, bitorder="little").reshape(-1, BLOCK)
    blocks = out.reshape(-1, BLOCK)
    blocks += np.where(negative, -scales[:, None], scales[:, None])


CASES: dict[str, Callable[[int], Contenders]] = {
    "bf16": partial(half, "bf16"),
    "bf16_decode": partial(half_decode, "bf16"),
    "fp16": partial(half, "fp16"),
    "fp16_decode": partial(half_decode, "fp16"),
    "int8_feedback": partial(feedback, quantise.INT8, int8_torch, int8_numpy),
    "int8_feedback_decode": partial(feedback_decode, quantise.INT8, int8_decode_torch, int8_decode_numpy),
    "sign_feedback": partial(feedback, quantise.SIGN_MEAN, sign_torch, sign_numpy),
    "sign_feedback_decode": partial(feedback_decode, quantise.SIGN_MEAN, sign_decode_torch, sign_decode_numpy),
}
