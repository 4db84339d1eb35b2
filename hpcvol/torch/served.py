"""The parameters of a run whose optimizer works in shards: each holder changes its own, and hands them out."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvol.collectives import Algorithm
from hpcvol.kernels.fixed_point import GRAIN_NUMEL
from hpcvol.strategies.pull import Pull
from hpcvol.strategies.shards import ServedSums, Shards
from hpcvol.torch.gradients import Gradients, norm_of, squares_of
from hpcvol.torch.sharded_optimizer import Flat, Held, ShardedOptimizer
from hpcvol.torch.step import not_finite


class ServedParameters:
    """What a run needs of a parameter server: whoever holds a shard applies the optimizer to it. Made collectively.

    Args:
        shards: who holds what.
        parameters: names and parameters that require a gradient, in an order that is the same on every member.
        optimizer: of them.
        gradients: which leave in `parameter.grad` what this member holds.
        sums: what sums over members.

    Raises:
        ConfigError, ModelError: as `ShardedOptimizer`.
    """

    def __init__(
        self,
        shards: Shards,
        parameters: Sequence[tuple[str, torch.nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        gradients: Gradients,
        sums: ServedSums,
    ) -> None:
        self.optimizer = ShardedOptimizer(optimizer, parameters)
        self.shards = shards
        self._names = [name for name, _ in parameters]
        self._parameters = [parameter for _, parameter in parameters]
        self._sums = sums
        self._gradients = gradients
        self._flats = [Flat(indices, self._parameters, layout) for indices, layout in gradients.layouts]
        self._set_up_pulls(sums.algorithm)
        for flat in self._flats:
            flat.move_in()
        grains = [-(-parameter.numel() // GRAIN_NUMEL) for parameter in self._parameters]
        self._first_grain = np.concatenate([[0], np.cumsum(grains)]).astype(np.int64)
        self.take_state()

    def norm(self, step: int) -> float:
        """Return the 2-norm of all gradients. Collective.

        Raises:
            ModelError: a gradient is not finite; on all members, with the first one's name.
        """
        squares: NDArray[np.float64] = np.zeros(self._first_grain[-1])
        first = {shard for shard, ranks in enumerate(self.shards.ranks) if ranks[0] == self.shards.group.rank}
        for piece in self.optimizer.held:
            if piece.shard in first and (gradient := self._gradient_of(piece)) is not None:
                found = squares_of(gradient)
                begin = int(self._first_grain[piece.parameter]) + piece.start // GRAIN_NUMEL
                squares[begin : begin + found.size] = found
        self._sums.sum(squares)
        norm = norm_of([squares])
        if not math.isfinite(norm):
            self._refuse_not_finite(step)
        return norm

    def apply(self, norm: float, limit: float | None) -> None:
        """Apply the optimizer to what this member holds. Local.

        Args:
            norm: of all gradients.
            limit: largest norm; None does not clip.
        """
        self.optimizer.take_loaded()
        scale = limit / norm if limit is not None and norm > limit else None

        def gradient_of(piece: Held) -> torch.Tensor | None:
            part = self._gradient_of(piece)
            return part if scale is None or part is None else part.mul_(scale)

        self.optimizer.apply(gradient_of, self.optimizer.hyperparameters())
        for parameter in self._parameters:
            parameter.grad = None  # only what this member holds was a gradient

    def pull(self) -> None:
        """Have all parameters as their holders have changed them. Collective; may be repeated."""
        for flat, pull in zip(self._flats, self._pulls, strict=True):
            flat.to_vector(self.optimizer.held)
            pull()
            flat.to_parameters()

    def take_state(self) -> None:
        """Take over the optimizer's state, as it is loaded or new: of what this member holds. Local.

        Raises:
            CheckpointError: there is a tensor in it that has not the shape of its parameter.
        """
        self.optimizer.hold(self._pieces())

    def inherit(self, leaving: set[int]) -> None:
        """As `hpcvol.elastic.membership.Part`: the shards of which they have the only copy, or one of several."""
        self._copy_shards(leaving)

    def rebuild(self) -> None:
        """As `hpcvol.elastic.membership.Part`: shards that have lost a holder are copied to another member.

        Raises:
            MemberError: there is one that nobody holds any more; on all members.
        """
        self.shards.settle(self.optimizer.shards, [flat.layout for flat in self._flats])
        self._copy_shards(set())
        self._set_up_pulls(self._sums.algorithm)

    def close(self) -> None:
        """Let the parameters go: another run may train them. Local."""
        for flat in self._flats:
            flat.move_out()

    def _set_up_pulls(self, algorithm: Algorithm) -> None:
        self._pulls = [Pull(self.shards, flat.layout, flat.memory, algorithm) for flat in self._flats]

    def _copy_shards(self, leaving: set[int]) -> None:
        """Copy what others are to hold too. The values they have: parameters are everybody's."""
        if lines := self.shards.plan(leaving):
            states = self.optimizer.copied(self.shards, lines)
            self.shards.copied(lines)
            self.optimizer.hold(self._pieces(), states)

    def _pieces(self) -> list[Held]:
        """Return what this member holds, in the memory of the parameters."""
        found = []
        for flat in self._flats:
            portions = flat.layout.portions(self.shards.number)
            for shard in self.shards.mine:
                for piece in (piece for part in portions[shard] for piece in flat.layout.pieces(part)):
                    index = flat.indices[piece.tensor]
                    values = self._parameters[index].data.view(-1)[piece.start : piece.stop]
                    found.append(Held(index, piece.start, piece.stop, shard, torch.nn.Parameter(values)))
        return found

    def _gradient_of(self, piece: Held) -> torch.Tensor | None:
        """Return the gradient of a piece; None where there is none: the same on all who hold it. Local."""
        gradient = self._parameters[piece.parameter].grad
        part = None if gradient is None else piece.of(gradient)
        if part is not None and piece.parameter in self._gradients.unused and not bool(part.any()):
            return None
        return part

    def _refuse_not_finite(self, step: int) -> None:
        mine = []
        for piece in self.optimizer.held:
            if (part := self._gradient_of(piece)) is not None and not bool(part.isfinite().all()):
                mine.append((piece.parameter, piece.start, float(part[~part.isfinite()][0])))
        found = [one for part in self.shards.group.gather_objects(mine) for one in part]
        index, _, value = min(found, default=(0, 0, math.inf))
        raise not_finite(step, f"gradient {self._names[index]}", value)
