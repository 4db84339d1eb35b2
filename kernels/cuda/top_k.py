"""Selection of the k elements of largest magnitude, as in `hpcvol.kernels.top_k`: the same ones, to the bit.

By radix selection: each pass over memory counts eleven bits, three of them for float32, and two more write the indices.
"""

from typing import Any

from hpcvol.kernels.cuda.launch import on_device
from hpcvol.kernels.cuda.radix import kth_magnitude
from hpcvol.kernels.cuda.selected import correct, take
from hpcvol.kernels.cuda.sparse import check
from hpcvol.kernels.cuda.survivors import collect


def top_k(x: Any, residual: Any, seed: int, indices: Any, values: Any) -> None:  # noqa: ARG001
    """Select the k elements of largest magnitude.

    Args:
        x: float32[n] or float64[n], n below 2^31, left alone.
        residual: of the dtype of `x`, [n], added to `x`, and then what was not selected, 0 elsewhere; or None.
        seed: of the CPU's sample; it has no say here.
        indices: int32[k], k at most n; overwritten: ascending.
        values: of the dtype of `x`, [k]; overwritten.

    Raises:
        ValueError: lengths do not fit; nothing was changed.
    """
    x, indices, values = on_device(x), on_device(indices), on_device(values)
    residual = None if residual is None else on_device(residual)
    check(x, residual, indices, values)
    source = correct(x, residual)
    if indices.size:
        collect(source, kth_magnitude(source, indices.size), indices)
    take(x, residual, indices, values)


def top_k_by_radix(x: Any, indices: Any, values: Any) -> None:
    """Select the k elements of largest magnitude; arguments as for `top_k`."""
    top_k(x, None, 0, indices, values)
