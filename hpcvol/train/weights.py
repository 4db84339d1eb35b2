"""The identity of weights: one digest that tells whether two runs made the same model."""

import hashlib

import torch


def weights_sha256(model: torch.nn.Module) -> str:
    """Return the SHA-256 of `named_parameters()`, in that order: each in its stored dtype, C order, little-endian."""
    total = hashlib.sha256()
    for _, parameter in model.named_parameters():
        data = parameter.detach().cpu().contiguous().reshape(-1)
        total.update(data.view(torch.uint8).numpy().data)
    return total.hexdigest()
