"""What selections do with a vector besides selecting: error feedback goes in before, and elements come out after."""

from typing import Any

from numba import cuda

from hpcvol.kernels.cuda.launch import THREADS, blocks_for


@cuda.jit
def _correct(x, residual):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        residual[i] += x[i]


@cuda.jit
def _take(source, indices, values):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        values[i] = source[indices[i]]


@cuda.jit
def _take_away(source, indices, values):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        values[i] = source[indices[i]]
        source[indices[i]] = 0


def correct(x: Any, residual: Any) -> Any:
    """Add `x` to `residual`, both on the device, in place, and return that; where it is None, return `x`."""
    if residual is None:
        return x
    if x.size:
        _correct[blocks_for(x.size), THREADS](x, residual)
    return residual


def take(x: Any, residual: Any, indices: Any, values: Any) -> None:
    """Write the elements at `indices` to `values`: of `x`, or, leaving 0 behind, of `residual` where that is not None.

    Args:
        x: float32[n] or float64[n] on the device, left alone.
        residual: of the dtype of `x`, [n], on the device, changed in place; or None.
        indices: int32[k] on the device, each in 0 to n - 1, and none twice.
        values: of the dtype of `x`, [k], on the device, overwritten.
    """
    if not indices.size:
        return
    if residual is None:
        _take[blocks_for(indices.size), THREADS](x, indices, values)
    else:
        _take_away[blocks_for(indices.size), THREADS](residual, indices, values)
