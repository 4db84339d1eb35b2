"""All-reduce: every step, every rank ends with the sum of all ranks' vectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcvol import tracing
from hpcvol.codecs import AUTO, AnyCodec, Codec, LowRank, parse
from hpcvol.collectives import Algorithm, allreduce, check_algorithm, check_name, exact_mean
from hpcvol.collectives.direct import SharedVector
from hpcvol.collectives.low_rank import Matrix
from hpcvol.comm import Group
from hpcvol.comm.calls import Call
from hpcvol.strategies.automatic import Automatic
from hpcvol.strategies.between import Between
from hpcvol.strategies.combinations import Combination
from hpcvol.strategies.encoded_floats import EncodedFloats
from hpcvol.strategies.exact_reducers import ExactBetween, NodeExact, PlainExact
from hpcvol.strategies.feedback import Feedback
from hpcvol.strategies.float_reducers import FloatsBetween, NodeFloats, PlainFloats
from hpcvol.strategies.in_turn import InTurn, turns_of
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.reducer import BUCKET_NBYTES, ExactReducer, FloatReducer
from hpcvol.strategies.robust_reducer import RobustFloats


class AllReduce:
    """Combine vectors of all ranks of `group` in place; all ranks end with the same bits.

    Gradients lie in memory that the ranks of a node share and are combined there; between nodes bucket after bucket,
    while the backward pass computes the next. With another algorithm than "auto" and "hierarchical", and where ranks of
    a node cannot share memory, they are combined by that algorithm at the end of the step.

    Args:
        group: the live ranks.
        algorithm: as `comm.algorithm`.
        bucket_nbytes: how many bytes of gradients are combined at once (`comm.bucket_nbytes`).
        combination: what becomes of members' gradients in floating point (`strategy.combine`); their mean by default.
        codec: what gradients in floating point are encoded by, as `strategy.codec`.
        seed: of what codecs draw; the same on all members.

    Attributes:
        automatic: what chooses codecs, where it is left to them: of each vector that was laid out.

    Raises:
        ConfigError: an algorithm that does not exist, or cannot work over the group.
        MismatchError: members ask for different ones.
    """

    def __init__(
        self,
        group: Group,
        algorithm: Algorithm = "auto",
        bucket_nbytes: int = BUCKET_NBYTES,
        combination: Combination | None = None,
        codec: AnyCodec = "none",
        seed: int = 0,
    ) -> None:
        check_name(algorithm)
        with group.calling(Call.of("choose_algorithm", algorithm=algorithm)):
            check_algorithm(group, algorithm)
        self.group = group
        self.algorithm: Algorithm = algorithm
        self.bucket_nbytes = bucket_nbytes
        self._combination = combination
        self._codec = parse(codec)
        self._chooses = codec == AUTO
        self.automatic: list[Automatic] = []
        self._seed = seed
        self._turns: InTurn | None = None

    def sum(self, vector: NDArray[Any]) -> None:
        """Replace `vector` by the sum over ranks. Collective, in place."""
        with tracing.span("all-reduce sum", nbytes=vector.nbytes):
            allreduce(self.group, vector, op="sum", algorithm=self.algorithm)

    def max(self, vector: NDArray[Any]) -> None:
        """Replace `vector` by the element-wise maximum over ranks. Collective, in place."""
        with tracing.span("all-reduce max", nbytes=vector.nbytes):
            allreduce(self.group, vector, op="max", algorithm=self.algorithm)

    def feedback(self, numel: int, dtype: "np.dtype[Any]") -> Feedback | None:
        """Return what a vector's reducers keep from step to step; None where they encode nothing. Local."""
        if self._chooses:
            return Feedback(numel, dtype, rows=1)
        return None if self._codec is None else Feedback(numel, dtype, rows=self._codec.residual_rows)

    def floats(
        self,
        layout: Layout,
        vector: Memory,
        feedback: Feedback | None = None,
        matrices: Sequence[Matrix] = (),
    ) -> FloatReducer:
        """Return what sums a step's gradients in floating point. Collective.

        Args:
            layout: of the gradients.
            vector: where they lie; its memory does not move.
            feedback: of this vector, where gradients are encoded.
            matrices: those in the vector.
        """
        if feedback is None:
            return self._plain(layout, vector)
        if self._codec is not None:
            shared = self._shared_by_several(vector)
            return EncodedFloats(self.group, self._codec, shared, vector.mine, matrices, feedback, self._seed)
        return self._choosing(layout, vector, feedback, matrices)

    def _shared_by_several(self, vector: Memory) -> SharedVector | None:
        """Return the vector beside those of this node where there are several nodes, else None. Collective.

        Asked for on one node too: a spare is on one of its own until it joins, and its memory does not move then.
        """
        shared = self._shared(self.group, vector)
        return shared if self.group.node.size < self.group.size else None

    def _choosing(self, layout: Layout, vector: Memory, feedback: Feedback, matrices: Sequence[Matrix]) -> FloatReducer:
        """Return what chooses by itself. Collective."""
        plain = self._plain(layout, vector)
        shared = self._shared_by_several(vector)

        def encoded(codec: Codec | LowRank | None) -> FloatReducer:
            return EncodedFloats(self.group, codec, shared, vector.mine, matrices, feedback, self._seed)

        group = self.group
        peers = group if shared is None else group.carriers.peers
        part = slice(0, vector.numel)
        if shared is not None:
            part = shared.slice_of(group.node.rank, 0, vector.numel, group.carriers.number)
        inside = [one.within(part.start, part.stop) for one in matrices]
        numel = part.stop - part.start
        feedback.place(group, [part], 0, owns=peers is not None and peers.rank == 0)
        chooses = Automatic(group, feedback, peers, plain, encoded, numel, vector.dtype, inside, self.bucket_nbytes)
        self.automatic.append(chooses)
        return chooses

    def _plain(self, layout: Layout, vector: Memory) -> FloatReducer:
        """Return what sums gradients as they are, or combines them robustly. Collective."""
        if self._combination is not None:
            return RobustFloats(self.group, self.algorithm, vector.mine, self._combination)
        group = self._group_of_gradients()
        shared = self._shared(group, vector)
        between = None if shared is None else self._between(layout)
        if shared is None or (between is None and self._turns is not None):
            return PlainFloats(self.group, self.algorithm, vector.mine, layout.buckets)
        return NodeFloats(shared) if between is None else FloatsBetween(shared, between, layout.buckets)

    def exact(self, layout: Layout, totals: Memory, means: Memory) -> ExactReducer:
        """Return what sums a step's gradients in integers and gives their means. Collective.

        Args:
            layout: of what is summed.
            totals: int64, where a member's sums lie; the memory does not move, nor that of `means`.
            means: where the means come to lie.
        """
        group = self._group_of_gradients()
        sums, shared = self._shared(group, totals), self._shared(group, means)
        between = None if sums is None or shared is None else self._between(layout)
        if sums is None or shared is None or (between is None and self._turns is not None):
            return PlainExact(self.group, self.algorithm, totals.mine, means.mine, layout.buckets)
        exact_mean.compile_for(group, means.dtype)
        return NodeExact(sums, shared) if between is None else ExactBetween(sums, shared, between, layout.buckets)

    def abandon(self) -> None:
        """Give up what is on its way: a member has died. Local."""
        self.automatic.clear()
        if self._turns is not None:
            self._turns.abandon()
            self._turns = None

    def close(self) -> None:
        """Give up what is still on its way after an error. Local."""
        if self._turns is not None:
            self._turns.give_up()

    def _group_of_gradients(self) -> Group:
        """Return the group over which gradients are combined: of several nodes, one of the thread's own."""
        if self.group.node.size == self.group.size:
            return self.group
        if self._turns is None:
            self._turns = turns_of(self.group)
        return self._turns.group

    def _between(self, layout: Layout) -> Between | None:
        """Return the steps between nodes; None where there is one node, or nodes share no memory. Collective."""
        if self._turns is None:
            return None
        ready = self._shared(self._turns.group, Memory(len(layout.buckets), np.dtype(np.int64)))
        return None if ready is None else Between(self._turns, ready)

    def _shared(self, group: Group, memory: Memory) -> SharedVector | None:
        if self.algorithm not in ("auto", "hierarchical") or not memory.numel:
            return None
        return memory.shared_over(group)
