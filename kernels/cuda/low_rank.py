"""Products of a matrix with a few vectors, and what they make, as in `hpcvol.kernels.low_rank`.

`project` and `project_back` add in another order than on a CPU, the same one on every GPU: they agree with it to
rounding. `reconstruct` computes the same bits.
"""

from typing import Any

from numba import cuda

from hpcvol.kernels.cuda.lanes import product
from hpcvol.kernels.cuda.launch import THREADS, on_device
from hpcvol.kernels.cuda.selected import correct

_FOUR = 4  # rows, and vectors, that a thread combines with each other at once
_CELLS = _FOUR * _FOUR
_SHARE = THREADS // _CELLS
_ROWS = 128  # that a thread adds up in a column
_FEW_ROWS = 16  # that a thread reconstructs in a column


@cuda.jit(device=True)
def _add_products(matrix, q, row, r, sums):  # type: ignore[no-untyped-def]
    """Write this thread's part of the inner products of four rows with four vectors; beyond the last it is that."""
    for cell in range(_CELLS):
        sums[cell] = 0
    for j in range(cuda.threadIdx.x, matrix.shape[1], THREADS):
        for b in range(_FOUR):
            weight = q[min(r + b, q.shape[0] - 1), j]
            for a in range(_FOUR):
                value = matrix[min(row + a, matrix.shape[0] - 1), j]
                sums[a * _FOUR + b] = cuda.fma(value, weight, sums[a * _FOUR + b])


@cuda.jit
def _project(matrix, q, p):  # type: ignore[no-untyped-def]
    """Four rows a block of threads, and four vectors after the other."""
    parts = cuda.shared.array((_CELLS, THREADS), p.dtype)
    shares = cuda.shared.array((_CELLS, _SHARE), p.dtype)
    sums = cuda.local.array(_CELLS, p.dtype)
    thread, row = cuda.threadIdx.x, cuda.blockIdx.x * _FOUR
    for r in range(0, q.shape[0], _FOUR):
        _add_products(matrix, q, row, r, sums)
        for cell in range(_CELLS):
            parts[cell, thread] = sums[cell]
        cuda.syncthreads()
        cell, share = thread // _SHARE, thread % _SHARE
        total = p.dtype.type(0)
        for i in range(share, THREADS, _SHARE):
            total += parts[cell, i]
        shares[cell, share] = total
        cuda.syncthreads()
        if share == 0 and row + cell // _FOUR < matrix.shape[0] and r + cell % _FOUR < q.shape[0]:
            total = p.dtype.type(0)
            for i in range(_SHARE):
                total += shares[cell, i]
            p[r + cell % _FOUR, row + cell // _FOUR] = total


def project(matrix: Any, residual: Any, q: Any, p: Any) -> None:
    """Write P = M Q, where M is `matrix`, or with error feedback `matrix + residual`, and then in `residual`.

    Args:
        matrix: [rows, columns], contiguous, left alone.
        residual: [rows, columns], contiguous, changed in place; or None.
        q: [rank, columns].
        p: [rank, rows], overwritten.
    """
    source, q, p = on_device(matrix), on_device(q), on_device(p)
    if residual is not None:
        correct(source.reshape(source.size), on_device(residual).reshape(source.size))
        source = on_device(residual)
    if p.size:
        _project[-(-source.shape[0] // _FOUR), THREADS](source, q, p)


@cuda.jit
def _project_back(matrix, p, partial):  # type: ignore[no-untyped-def]
    """A column a thread: the sums over some rows, for four vectors after the other."""
    j, begin = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.blockIdx.y * _ROWS
    sums = cuda.local.array(_FOUR, matrix.dtype)
    if j >= matrix.shape[1]:
        return
    for r in range(0, p.shape[0], _FOUR):
        for b in range(_FOUR):
            sums[b] = 0
        for i in range(begin, min(begin + _ROWS, matrix.shape[0])):
            value = matrix[i, j]
            for b in range(_FOUR):
                sums[b] = cuda.fma(value, p[min(r + b, p.shape[0] - 1), i], sums[b])
        for b in range(_FOUR):
            if r + b < p.shape[0]:
                partial[cuda.blockIdx.y, r + b, j] = sums[b]


@cuda.jit
def _add_partial(partial, q):  # type: ignore[no-untyped-def]
    j, r = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.blockIdx.y
    if j < q.shape[1]:
        total = q.dtype.type(0)
        for chunk in range(partial.shape[0]):
            total += partial[chunk, r, j]
        q[r, j] = total


def project_back(matrix: Any, p: Any, q: Any) -> None:
    """Write Q = Mᵀ P.

    Args:
        matrix: M, [rows, columns], left alone.
        p: [rank, rows].
        q: [rank, columns], overwritten.
    """
    matrix, p, q = on_device(matrix), on_device(p), on_device(q)
    if not q.size:
        return
    (rank, columns), chunks = q.shape, max(1, -(-matrix.shape[0] // _ROWS))
    partial, blocks = cuda.device_array((chunks, rank, columns), q.dtype), -(-columns // THREADS)
    _project_back[(blocks, chunks), THREADS](matrix, p, partial)
    _add_partial[(blocks, rank), THREADS](partial, q)


@cuda.jit(device=True)
def _sum_of_four(p, q, i, j, r):  # type: ignore[no-untyped-def]
    """Return what vectors from `r` on, four at most, add to an element: rounded in the order in which a CPU does it."""
    total = product(p[r, i], q[r, j])
    for other in range(r + 1, min(r + _FOUR, p.shape[0])):
        total = cuda.fma(p[other, i], q[other, j], total)
    return total


@cuda.jit
def _add(p, q, out):  # type: ignore[no-untyped-def]
    begin, j = cuda.blockIdx.x * _FEW_ROWS, cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if j < out.shape[1]:
        for i in range(begin, min(begin + _FEW_ROWS, out.shape[0])):
            value = out[i, j]
            for r in range(0, p.shape[0], _FOUR):
                value += _sum_of_four(p, q, i, j, r)
            out[i, j] = value


@cuda.jit
def _subtract(p, q, residual):  # type: ignore[no-untyped-def]
    begin, j = cuda.blockIdx.x * _FEW_ROWS, cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if j < residual.shape[1]:
        for i in range(begin, min(begin + _FEW_ROWS, residual.shape[0])):
            value = residual[i, j]
            for r in range(0, p.shape[0], _FOUR):
                value -= _sum_of_four(p, q, i, j, r)
            residual[i, j] = value


@cuda.jit
def _move(p, q, residual, out):  # type: ignore[no-untyped-def]
    begin, j = cuda.blockIdx.x * _FEW_ROWS, cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if j < out.shape[1]:
        for i in range(begin, min(begin + _FEW_ROWS, out.shape[0])):
            left, value = residual[i, j], out[i, j]
            for r in range(0, p.shape[0], _FOUR):
                moved = _sum_of_four(p, q, i, j, r)
                left -= moved
                value += moved
            residual[i, j] = left
            out[i, j] = value


def reconstruct(p: Any, q: Any, residual: Any, out: Any) -> None:
    """Take P Qᵀ out of what stays behind, and add the same to what it is decoded into: residual -= P Qᵀ, out += P Qᵀ.

    Args:
        p: [rank, rows].
        q: [rank, columns].
        residual: M, [rows, columns], changed in place; or None.
        out: [rows, columns], changed in place; or None.
    """
    p, q = on_device(p), on_device(q)
    grid = -(-p.shape[1] // _FEW_ROWS), -(-q.shape[1] // THREADS)
    if not p.size or not q.size:
        return
    if residual is not None and out is not None:
        _move[grid, THREADS](p, q, on_device(residual), on_device(out))
    elif residual is not None:
        _subtract[grid, THREADS](p, q, on_device(residual))
    elif out is not None:
        _add[grid, THREADS](p, q, on_device(out))
