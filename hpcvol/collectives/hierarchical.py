"""Hierarchical all-reduce: within nodes, then between nodes, then within nodes again.

Between nodes every carrier of a node brings its own slice of the vector, all at once, so that no single rank has to
feed the network for its node. Where nodes have different numbers of ranks, each has as many carriers as the smallest
has ranks.

References:
    Jocksch, Ohana, Lanti, Koutsaniti, Karakasis and Villard, An optimisation of allreduce communication in
    message-passing systems, Parallel Computing 107 (2021), section 2 (what each rank of a node carries).
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from hpcvol.collectives.all_gather import gather_slices
from hpcvol.collectives.combine import finish
from hpcvol.collectives.reduce_scatter import reduce_slices
from hpcvol.collectives.slices import Bounds, even_bounds
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector

# An all-reduce of any kind, in place.
Between: TypeAlias = Callable[[Group, Vector, Op], None]


class NodeLevel(Protocol):
    """What the ranks of one node do before and after the step between nodes.

    Slice `bounds[r]` belongs to rank r of the node; slices of ranks that carry none are empty.
    """

    def reduce_scatter(self, node: Group, vector: Vector, bounds: Bounds, op: Op) -> None:
        """Leave in slice `bounds[node.rank]` of `vector` what that slice of the vectors of all ranks combines to.

        Other slices may hold anything afterwards. "mean" is combined as a sum.
        """

    def all_gather(self, node: Group, vector: Vector, bounds: Bounds) -> None:
        """Give slice `bounds[rank]` of every rank's vector to all ranks of the node."""


class ByMessages:
    """The node's step by messages: for any vectors, where there is no shared memory."""

    def reduce_scatter(self, node: Group, vector: Vector, bounds: Bounds, op: Op) -> None:
        """Do as `NodeLevel` says; slices of other ranks are left alone."""
        reduce_slices(node, vector, vector[slice(*bounds[node.rank])], bounds, op)

    def all_gather(self, node: Group, vector: Vector, bounds: Bounds) -> None:
        """Do as `NodeLevel` says."""
        gather_slices(node, vector, bounds)


def allreduce(group: Group, vector: Vector, op: Op, between: Between, within: NodeLevel | None = None) -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    Same bits on all ranks: a slice is combined by one rank of each node, between nodes by an algorithm that gives all
    of them the same bits, and then copied.

    Cost, for k carriers a node: that of `between` over one rank a node for 1 / k of the vector, k of them at once, and
    twice the vector's bytes within the node.

    Args:
        group: all of its ranks call this with the same operation, length and dtype.
        vector: as for `allreduce`.
        op: as for `allreduce`.
        between: combines slices over one rank of each node.
        within: the steps within nodes; by messages if none is given.
    """
    node, carriers = group.node, group.carriers
    steps = within or ByMessages()
    slices = even_bounds(vector.size, carriers.number)
    bounds = [*slices, *[(vector.size, vector.size)] * (node.size - carriers.number)]
    if node.size > 1:
        steps.reduce_scatter(node, vector, bounds, op)
    mine = vector[slice(*bounds[node.rank])]
    if carriers.peers is not None:
        between(carriers.peers, mine, "sum" if op == "mean" else op)
    finish(op, mine, group.size)
    if node.size > 1:
        steps.all_gather(node, vector, bounds)
