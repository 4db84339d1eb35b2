"""`python -m hpcvol.torch.machine`: what torch finds on this host, and the digest of a small computation, as JSON.

Hosts whose numerics class or digest differ compute other bits, so that a run under the exact sum cannot have both.
"""

import hashlib
import json
import sys
from typing import Any

import torch

from hpcvol.torch.numerics import numerics_class


def facts() -> dict[str, Any]:
    """Return what torch is and sees, its numerics class with one thread, and the digest of a computation. Local."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(index) for index in range(gpus)],
        "threads": threads,
        "numerics": {**numerics_class(), "digest": computation_digest()},
    }


def computation_digest() -> str:
    """Return the digest of one small network's gradient on the CPU: products, a convolution, exponentials. Local."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, 12, 12, generator=generator)
    kernel = torch.randn(8, 3, 3, 3, generator=generator, requires_grad=True)
    matrix = torch.randn(800, 97, generator=generator, requires_grad=True)
    hidden = torch.nn.functional.gelu(torch.conv2d(x, kernel)).flatten(1)
    loss = torch.log_softmax(hidden @ matrix, 1).exp().square().mean() + torch.tanh(hidden).mean()
    gradients = torch.autograd.grad(loss, [kernel, matrix])
    total = hashlib.sha256()
    for gradient in gradients:
        total.update(gradient.contiguous().numpy().data)
    return total.hexdigest()[:12]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()) + "\n")
