"""What members of a run have not sent of their gradients: summed for checkpoints, inherited, and counted where lost."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from hpcvol.comm import Group
from hpcvol.errors import CheckpointError
from hpcvol.strategies.feedback import Feedback

# What members say with the records of a step.
_NORM = "residual_norm"


class Residuals:
    """The residuals of all vectors of gradients of a run; none where no codec leaves anything out.

    Args:
        group: the members.
        feedbacks: this member's, by dtype.

    Attributes:
        lost: of members that died: id, and the norm of what it had not sent, as it had told last.
        norms: of what members have not sent, by id, as they told last; the same on all members.
    """

    def __init__(self, group: Group, feedbacks: Mapping[str, Feedback]) -> None:
        self._group = group
        self._feedbacks = feedbacks
        self.lost: list[tuple[int, float]] = []
        self.norms: dict[int, float] = {}

    def committed(self, told: Mapping[int, Mapping[str, Any]], saying: dict[str, Any]) -> None:
        """Learn what members have told with a step, and say what this one has kept of it. Local."""
        if self._feedbacks:
            self.norms = {member: said.get(_NORM, 0.0) for member, said in told.items()}
            self.tell(saying)

    def tell(self, saying: dict[str, Any]) -> None:
        """Say what this member has kept. Local."""
        if self._feedbacks:
            saying[_NORM] = math.hypot(*(feedback.norm for feedback in self._feedbacks.values()))

    def inherit(self, leaving: set[int]) -> None:
        """As `hpcvol.elastic.membership.Part`."""
        for feedback in self._feedbacks.values():
            feedback.inherit(self._group, leaving)

    def rebuild(self) -> None:
        """Count what those had who are gone, and handed nothing over; vectors were set up again. Local."""
        gone = self.norms.keys() - set(self._group.members)
        lost = gone.difference(*(feedback.inherited for feedback in self._feedbacks.values()))
        self.lost += [(one, self.norms[one]) for one in sorted(lost) if self.norms[one]]
        self.norms = {one: norm for one, norm in self.norms.items() if one not in gone}

    def gathered(self) -> dict[str, torch.Tensor]:
        """Return the sums over all members by dtype, for a checkpoint; without those that are 0. Collective."""
        sums = {name: one.gathered(self._group) for name, one in self._feedbacks.items()}
        return {name: torch.from_numpy(one) for name, one in sums.items() if one is not None}

    def load(self, stored: Mapping[str, torch.Tensor], step: int) -> bool:
        """Go on from what `gathered` returned after `step` steps. Local; the same on every member.

        Returns:
            Whether all of it is kept: not so where `strategy.codec` keeps nothing any more, or no momentum.

        Raises:
            CheckpointError: they are of another model.
        """
        whole = stored.keys() <= self._feedbacks.keys()
        for name, feedback in self._feedbacks.items():
            try:
                whole &= feedback.load(None if name not in stored else stored[name].numpy(), step)
            except ValueError as error:
                raise CheckpointError(f"the checkpoint's residuals are not of this model: {error}") from None
        return whole
