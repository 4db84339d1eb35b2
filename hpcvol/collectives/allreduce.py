"""All-reduce: the one call for combining vectors, whatever the algorithm."""

import numpy as np

from hpcvol.collectives.algorithms import NUMBER_THEMSELVES, Algorithm, check_algorithm, check_name
from hpcvol.collectives.calling import calling
from hpcvol.collectives.checks import check_numel, check_op, check_pair, check_vector, is_same
from hpcvol.collectives.choose import choose
from hpcvol.comm.calls import Call
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector

_NAME = "allreduce"


def allreduce(
    group: Group, vector: Vector, op: Op = "sum", algorithm: Algorithm = "auto", out: Vector | None = None
) -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`, or write that to `out`. Collective.

    All ranks end with the same bits (which NaN a sum or product has excepted), whatever the algorithm; and with the
    same bits every time for the same values, ranks, algorithm and, for "auto" and "hierarchical", table of costs. Sums,
    means and products of floats depend on the number of ranks and on the algorithm in their last bits; minimum, maximum
    and integers do not. Integers wrap around; half types are combined in float32 and rounded at each combination, so
    that a mean overflows where its sum does.

    Minimum and maximum are NaN where any rank has NaN, and -0 is less than 0.

    Args:
        group: all of its ranks call this with the same `op`, `algorithm`, length and dtype.
        vector: float32, float64, float16, bfloat16 (of ml_dtypes), int32 or int64 of any length, contiguous, 1-D.
        op: "sum", "mean" (of floats), "min", "max" or "product".
        algorithm: "ring", "recursive_doubling", "halving_doubling", "hierarchical", "library" (the MPI library's own),
            of ranks on one node "staged" or "cross_memory", or "auto": staged where there is shared memory, else the
            one that costs least by short measurements.
        out: takes the result in place of `vector`, which is left alone then; as long, and apart from it or the same.

    Raises:
        TypeError: not a NumPy array, or another dtype.
        ValueError: not 1-D, contiguous and writable; unknown op; `out` is not as long, or overlaps `vector` partly.
        ConfigError: unknown algorithm, or one that cannot work over this group.
        MismatchError: members are in different calls.
        MemberError: another member died.
    """
    if out is None:
        check_vector(vector, written=True)
        result = vector
    else:
        check_pair(vector, out)
        check_numel("the output", out.size, vector.size)
        result = out
        if not is_same(vector, out, "the same vector"):
            np.copyto(out, vector)
    check_op(op, vector.dtype)
    check_name(algorithm)
    if group.size > 1:
        _meet_at_first(group, result, op, algorithm)
    check_algorithm(group, algorithm)
    if group.size == 1:
        return
    combine = choose(group, result, algorithm)
    if combine in NUMBER_THEMSELVES:
        combine(group, result, op)
    else:
        with calling(group, "allreduce", result, None, op, algorithm):
            combine(group, result, op)


def _meet_at_first(group: Group, vector: Vector, op: Op, algorithm: Algorithm) -> None:
    """Meet before what only first calls do: map memory, measure, compile.

    These make calls of their own, by which ranks whose calls differ would not be told of theirs.
    """
    met: set[tuple[str, int]] = group.kept.setdefault(_NAME, set())
    key = algorithm, vector.dtype.num
    if key not in met:
        with group.calling(Call.of("allreduce", vector.dtype, vector.size, op, algorithm)):
            met.add(key)
