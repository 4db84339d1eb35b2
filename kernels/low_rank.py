"""Products of a matrix with a few vectors, and the matrix of low rank that they make: the parts of PowerSGD.

A matrix M, [rows, columns], is approximated by P Qᵀ = Σ p_r q_rᵀ. Factors hold a vector a row: p is [rank, rows], q is
[rank, columns]. All arrays are contiguous, of one dtype, float32 or float64, and have at least one row. Each function
reads the matrix once, in tiles that stay in the nearest cache while four vectors after the other take their turn: made
for rank 1 to 8.

One step: `project`, all-reduce p, `orthogonalise` p, `project_back`, all-reduce q, `reconstruct`. What ranks have to
agree on to the bit, `reconstruct`, rounds every product and every sum; `project` adds in the compiler's order, the same
in every call, but not on every kind of processor. NaN and infinity spread over whatever they have a part in.

References:
    Vogels, Karimireddy and Jaggi, PowerSGD: practical low-rank gradient compression, NeurIPS 2019, algorithms 1 and 2.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit
from numba.core import cgutils
from numba.extending import intrinsic

_FOUR = 4  # vectors that a tile is combined with at once
_COLUMNS = 4096  # of a tile: wide ones are fetched ahead better


if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def _fma(a: Any, b: Any, c: Any) -> Any:
        return a * b + c

else:

    @intrinsic
    def _fma(_context: Any, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c, rounded once wherever this runs; left to the compiler that would differ by processor."""

        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            kind = args[0].type
            name = "llvm.fma.f32" if kind == ir.FloatType() else "llvm.fma.f64"
            function = ir.FunctionType(kind, [kind] * 3)
            fma = cgutils.get_or_insert_function(builder.module, function, name)  # type: ignore[no-untyped-call]
            return builder.call(fma, args)

        return a(a, b, c), generate


@njit(nogil=True, cache=True)
def project(matrix, residual, q, p):  # type: ignore[no-untyped-def]
    """Write P = M Q, where M is `matrix`, or with error feedback `matrix + residual`, and then in `residual`.

    Args:
        matrix: [rows, columns], left alone.
        residual: [rows, columns], changed in place; or None.
        q: [rank, columns].
        p: [rank, rows], overwritten.
    """
    rows, columns = matrix.shape
    vectors = _whole_fours(q)
    sums = np.zeros(vectors.shape[0], q.dtype)
    for i in range(rows):
        sums[:] = 0
        for start in range(0, columns, _COLUMNS):
            stop = min(start + _COLUMNS, columns)
            if residual is None:
                tile = matrix[i, start:stop]
                _add_products(tile, vectors, 0, start, stop, sums)
            else:
                tile = residual[i, start:stop]
                _correct_and_add_products(matrix[i, start:stop], tile, vectors, start, stop, sums)
            for r in range(_FOUR, sums.size, _FOUR):
                _add_products(tile, vectors, r, start, stop, sums)
        p[:, i] = sums[: p.shape[0]]


@njit(nogil=True, cache=True)
def _whole_fours(vectors):  # type: ignore[no-untyped-def]
    """Return the vectors, and zeros behind them up to a multiple of four."""
    count = (vectors.shape[0] + _FOUR - 1) // _FOUR * _FOUR
    padded = np.zeros((count, vectors.shape[1]), vectors.dtype)
    padded[: vectors.shape[0]] = vectors
    return padded


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _add_products(tile, vectors, r, start, stop, sums):  # type: ignore[no-untyped-def]
    """Add the inner products of a tile with four vectors from `r` on to their sums."""
    x0, x1, x2, x3 = _four(vectors, r, start, stop)
    s0 = s1 = s2 = s3 = tile.dtype.type(0)
    for j in range(tile.size):
        s0 += tile[j] * x0[j]
        s1 += tile[j] * x1[j]
        s2 += tile[j] * x2[j]
        s3 += tile[j] * x3[j]
    sums[r] += s0
    sums[r + 1] += s1
    sums[r + 2] += s2
    sums[r + 3] += s3


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _correct_and_add_products(x, tile, vectors, start, stop, sums):  # type: ignore[no-untyped-def]
    """Add `x` to a tile, and then do what `_add_products` does for the first four vectors, all at once."""
    x0, x1, x2, x3 = _four(vectors, 0, start, stop)
    s0 = s1 = s2 = s3 = tile.dtype.type(0)
    for j in range(tile.size):
        corrected = tile[j] + x[j]
        tile[j] = corrected
        s0 += corrected * x0[j]
        s1 += corrected * x1[j]
        s2 += corrected * x2[j]
        s3 += corrected * x3[j]
    sums[0] += s0
    sums[1] += s1
    sums[2] += s2
    sums[3] += s3


@njit(nogil=True, cache=True)
def project_back(matrix, p, q):  # type: ignore[no-untyped-def]
    """Write Q = Mᵀ P.

    Args:
        matrix: M, [rows, columns], left alone.
        p: [rank, rows].
        q: [rank, columns], overwritten.
    """
    rows = matrix.shape[0]
    whole = rows // _FOUR * _FOUR
    q[:] = 0
    for i in range(0, whole, _FOUR):
        _add_four_rows(matrix[i : i + _FOUR], p[:, i : i + _FOUR], q)
    if whole < rows:
        _add_four_rows(_whole_fours(matrix[whole:]), _whole_fours(p[:, whole:].T).T, q)


@njit(nogil=True, cache=True)
def _add_four_rows(rows, weights, q):  # type: ignore[no-untyped-def]
    for start in range(0, q.shape[1], _COLUMNS):
        stop = min(start + _COLUMNS, q.shape[1])
        for r in range(q.shape[0]):
            w = weights[r, 0], weights[r, 1], weights[r, 2], weights[r, 3]
            _add(w, _four(rows, 0, start, stop), q[r, start:stop])


@njit(nogil=True, cache=True)
def reconstruct(p, q, residual, out):  # type: ignore[no-untyped-def]
    """Take P Qᵀ out of what stays behind, and add the same to what it is decoded into: residual -= P Qᵀ, out += P Qᵀ.

    Args:
        p: [rank, rows].
        q: [rank, columns].
        residual: M, [rows, columns], changed in place; or None.
        out: [rows, columns], changed in place; or None.
    """
    columns = q.shape[1]
    weights, vectors = _whole_fours(p), _whole_fours(q)
    for i in range(p.shape[1]):
        for start in range(0, columns, _COLUMNS):
            stop = min(start + _COLUMNS, columns)
            for r in range(0, vectors.shape[0], _FOUR):
                w = weights[r, i], weights[r + 1, i], weights[r + 2, i], weights[r + 3, i]
                four = _four(vectors, r, start, stop)
                if residual is None:
                    if out is not None:  # Numba does not see what the branch above says
                        _add(w, four, out[i, start:stop])
                elif out is None:
                    _subtract(w, four, residual[i, start:stop])
                else:
                    _move(w, four, residual[i, start:stop], out[i, start:stop])


@njit(nogil=True, cache=True)
def _four(vectors, r, start, stop):  # type: ignore[no-untyped-def]
    return vectors[r, start:stop], vectors[r + 1, start:stop], vectors[r + 2, start:stop], vectors[r + 3, start:stop]


@njit(nogil=True, cache=True, inline="always")
def _sum_of_four(w, a, b, c, d):  # type: ignore[no-untyped-def]
    return _fma(w[3], d, _fma(w[2], c, _fma(w[1], b, w[0] * a)))


@njit(nogil=True, cache=True)
def _add(w, four, out):  # type: ignore[no-untyped-def]
    a, b, c, d = four
    for j in range(out.size):
        out[j] += _sum_of_four(w, a[j], b[j], c[j], d[j])


@njit(nogil=True, cache=True)
def _subtract(w, four, residual):  # type: ignore[no-untyped-def]
    a, b, c, d = four
    for j in range(residual.size):
        residual[j] -= _sum_of_four(w, a[j], b[j], c[j], d[j])


@njit(nogil=True, cache=True)
def _move(w, four, residual, out):  # type: ignore[no-untyped-def]
    a, b, c, d = four
    for j in range(out.size):
        moved = _sum_of_four(w, a[j], b[j], c[j], d[j])
        residual[j] -= moved
        out[j] += moved
