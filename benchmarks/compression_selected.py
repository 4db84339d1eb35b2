"""The cases of compression.py in which few elements are kept, or few columns: top-k, random-k, PowerSGD.

Gradients of other kinds than the normal one of all cases are `topk_` and their name; there radix selection alone is a
contender, which no gradient can make slower.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

from hpcvol.kernels import low_rank, random_k, sparse, top_k
from hpcvol.kernels.orthogonalise import orthogonalise

Contenders = dict[str, Callable[[Any, Any], Any]]

SHARE, RANK, COLUMNS = 0.01, 4, 5120


def count(numel: int) -> int:
    """Return k."""
    return round(SHARE * numel)


def selection(numel: int) -> Any:
    """Return memory for indices and values."""
    return np.zeros(count(numel), np.int32), np.zeros(count(numel), np.float32)


def topk_torch(x: torch.Tensor, residual: torch.Tensor) -> Any:
    """Select with error feedback."""
    indices = residual.add_(x).abs().topk(count(x.numel()), sorted=False).indices
    values = residual[indices]
    residual[indices] = 0
    return indices, values


def topk_numpy(x: Any, residual: Any) -> Any:
    """Do the same."""
    residual += x
    indices = np.argpartition(np.abs(residual), x.size - count(x.size))[-count(x.size) :]
    values = residual[indices]
    residual[indices] = 0
    return indices, values


def topk_feedback(numel: int) -> Contenders:
    """Select the largest with error feedback."""
    seeds, chosen = itertools.count(), selection(numel)
    return {
        "hpcvol": lambda x, residual: top_k.top_k(x, residual, next(seeds), *chosen),
        "torch": lambda x, residual: topk_torch(torch.from_numpy(x), torch.from_numpy(residual)),
        "numpy": topk_numpy,
    }


def topk_of(kind: str, numel: int) -> Contenders:
    """Select the largest of another gradient."""
    gradient, seeds, chosen = KINDS[kind](numel).astype(np.float32), itertools.count(), selection(numel)
    return {
        "hpcvol": lambda _, __: top_k.top_k(gradient, None, next(seeds), *chosen),
        "radix": lambda _, __: top_k.top_k_by_radix(gradient, *chosen),
        "torch": lambda _, __: torch.from_numpy(gradient).abs().topk(count(numel), sorted=False),
    }


def randomk(numel: int) -> Contenders:
    """Select at random."""
    seeds, (indices, values) = itertools.count(), selection(numel)
    generator = np.random.default_rng(0)
    return {
        "hpcvol": lambda x, _: random_k.random_k(x, None, next(seeds), indices, values),
        "torch": lambda x, _: torch.from_numpy(x)[torch.randperm(numel)[: count(numel)]],
        "numpy": lambda x, _: x[generator.permutation(numel)[: count(numel)]],
    }


def sparse_decode(numel: int) -> Contenders:
    """Add what was selected, at random places."""
    indices, values = selection(numel)
    random_k.random_indices(numel, 1, indices)
    values[:] = np.random.default_rng(0).standard_normal(values.size)
    long, tensor = torch.from_numpy(indices.astype(np.int64)), torch.from_numpy(values)
    return {
        "hpcvol": lambda _, out: sparse.add(indices, values, out),
        "torch": lambda _, out: torch.from_numpy(out).index_add_(0, long, tensor),
        "numpy": lambda _, out: out.__setitem__(indices, out[indices] + values),
    }


def factors(numel: int) -> Any:
    """Return P and Q, random."""
    random, rows = np.random.default_rng(0), numel // COLUMNS
    return [random.standard_normal((RANK, length), np.float32) for length in (rows, COLUMNS)]


def matrix(vector: Any) -> Any:
    """Return the matrix that fills a vector but for its end."""
    rows = len(vector) // COLUMNS
    return vector[: rows * COLUMNS].reshape(rows, COLUMNS)


def powersgd_feedback(numel: int) -> Contenders:
    """Make both factors with error feedback, and take what they say out of the residual.

    "torch" does that with as few operations as torch has; "torch_hook" does what torch's PowerSGD hook does of it, and
    that decodes besides: its residual is what is left of the decoded.
    """
    p, q = factors(numel)
    torch_q, numpy_q = torch.from_numpy(q.T.copy()), q.T.copy()
    hook_p, hook_q = torch.from_numpy(p.T.copy())[None], torch.from_numpy(q.T.copy())[None]

    def ours(x: Any, residual: Any) -> None:
        low_rank.project(matrix(x), matrix(residual), q, p)
        orthogonalise(p)
        low_rank.project_back(matrix(residual), p, q)
        low_rank.reconstruct(p, q, matrix(residual), None)

    def torchs(x: Any, residual: Any) -> None:
        corrected = matrix(torch.from_numpy(residual)).add_(matrix(torch.from_numpy(x)))
        left = torch.linalg.qr(corrected @ torch_q).Q
        torch.mm(corrected.T, left, out=torch_q)
        corrected.addmm_(left, torch_q.T, alpha=-1)

    gradient, errors = torch.randn(1, p.shape[1], COLUMNS), [torch.zeros(1, p.shape[1], COLUMNS)]

    def hooks(_: Any, __: Any) -> None:
        gradient.add_(errors.pop())
        kept = torch.clone(gradient)
        torch.bmm(gradient, hook_q, out=hook_p)
        powerSGD_hook._orthogonalize(hook_p)
        torch.bmm(gradient.transpose(1, 2), hook_p, out=hook_q)
        torch.bmm(hook_p, hook_q.transpose(1, 2), out=gradient)
        errors.append(kept - gradient)

    def numpys(x: Any, residual: Any) -> None:
        corrected = matrix(residual)
        corrected += matrix(x)
        left = np.linalg.qr(corrected @ numpy_q).Q
        np.matmul(corrected.T, left, out=numpy_q)
        corrected -= left @ numpy_q.T

    return {"hpcvol": ours, "torch": torchs, "torch_hook": hooks, "numpy": numpys}


def powersgd_decode(numel: int) -> Contenders:
    """Add the product of both factors."""
    p, q = factors(numel)
    left, right = torch.from_numpy(p.T.copy()), torch.from_numpy(q)

    def numpys(_: Any, out: Any) -> None:
        decoded = matrix(out)
        decoded += p.T @ q

    return {
        "hpcvol": lambda _, out: low_rank.reconstruct(p, q, None, matrix(out)),
        "torch": lambda _, out: matrix(torch.from_numpy(out)).addmm_(left, right),
        "numpy": numpys,
    }


def _adversarial(numel: int) -> Any:
    """Return what few samples tell nothing of: all alike but for fewer than k, larger in ever smaller steps."""
    values = np.ones(numel, np.float32)
    places = np.random.default_rng(0).integers(0, numel, count(numel) - 1)
    values[places] += np.linspace(1e-6, 1e-3, places.size, dtype=np.float32)
    return values


KINDS: dict[str, Callable[[int], Any]] = {
    "heavy_tailed": lambda numel: np.random.default_rng(0).standard_t(1.5, numel),
    "constant": lambda numel: np.full(numel, 0.5),
    "zero": np.zeros,
    "sparse": lambda numel: np.where(np.random.default_rng(0).random(numel) < 0.001, 1.0, 0.0),
    "sorted": lambda numel: np.linspace(-1, 1, numel),
    "adversarial": _adversarial,
}

CASES: dict[str, Callable[[int], Contenders]] = {
    "topk_feedback": topk_feedback,
    "topk_feedback_decode": sparse_decode,
    "randomk": randomk,
    "randomk_decode": sparse_decode,
    "powersgd_feedback": powersgd_feedback,
    "powersgd_feedback_decode": powersgd_decode,
    **{f"topk_{kind}": partial(topk_of, kind) for kind in KINDS},
}
