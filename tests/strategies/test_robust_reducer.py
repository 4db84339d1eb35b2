"""Gradients combined slice by slice over members: what one process makes of all of them."""

from typing import Any

import numpy as np
import pytest

from hpcvol.comm import Group
from hpcvol.errors import ConfigError
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.combinations import parse
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory

BUCKETS = [(0, 1040), (1040, 2003)]
NUMEL = BUCKETS[-1][1]
LAYOUT = Layout((0, 1040), (1040, 963), NUMEL, tuple(BUCKETS), (0, 1))


def mean_gradient(rank: int, dtype: Any) -> Any:
    return np.random.default_rng(rank).standard_normal(NUMEL).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", ["median", "trimmed_mean:0.3", "krum:0", "multi_krum:0", "centred_clip:9"])
def test_slices_are_combined_as_whole_vectors_are(group: Group, text: str, dtype: Any) -> None:
    combination = parse(text)
    assert combination is not None
    if group.size < combination.least_members:
        with pytest.raises(ConfigError, match="needs the gradients of 3 members"):
            AllReduce(group, combination=combination).floats(LAYOUT, Memory(NUMEL, np.dtype(dtype)))
        return
    reducer = AllReduce(group, combination=combination).floats(LAYOUT, Memory(NUMEL, np.dtype(dtype)))
    place = reducer.vector.ctypes.data
    stack = np.array([mean_gradient(rank, dtype) for rank in range(group.size)])
    wanted = combination.combine(stack, lambda _: None)
    for _ in range(2):
        own = 2 ** (group.rank + 1)
        reducer.vector[:] = own * mean_gradient(group.rank, dtype)
        reducer.push(0)
        reducer.push(1)
        reducer.finish(2 ** (group.size + 1) - 2, own)
        np.testing.assert_allclose(reducer.vector, wanted, rtol=1e-5, atol=1e-6)
        assert group.gather_objects(reducer.vector.tobytes()) == [reducer.vector.tobytes()] * group.size
    assert reducer.vector.ctypes.data == place


def test_who_had_no_samples_does_not_count(group: Group) -> None:
    reducer = (
        AllReduce(group, combination=parse("median")).floats(LAYOUT, Memory(NUMEL, np.dtype(np.float32)))
        if group.size == 4
        else None
    )
    if reducer is None:
        pytest.skip("three that have some, and one that has none")
    reducer.vector[:] = mean_gradient(group.rank, np.float32) if group.rank else np.float32(0)
    reducer.finish(3, int(group.rank > 0))
    wanted = np.median([mean_gradient(rank, np.float32) for rank in (1, 2, 3)], axis=0)
    np.testing.assert_array_equal(reducer.vector, wanted)
