"""Memory that vectors of a member lie in for the whole run, whoever else shares it."""

from typing import Any

import numpy as np

from hpcvol.collectives import Vector
from hpcvol.collectives.direct import SharedVector, share
from hpcvol.comm import Group


class Memory:
    """One vector of this member: shared with others of its node where it can be, and never moved afterwards.

    Args:
        numel: elements.
        dtype: of them.
    """

    def __init__(self, numel: int, dtype: "np.dtype[Any]") -> None:
        self.numel = numel
        self.dtype = dtype
        self._mine: Vector | None = None
        self._shared: SharedVector | None = None

    @property
    def mine(self) -> Vector:
        """The vector, zero at first. Local."""
        if self._mine is None:
            self._mine = np.zeros(self.numel, self.dtype)
        return self._mine

    def shared_over(self, group: Group) -> SharedVector | None:
        """Return the vector beside those of the others of this node in `group`; None where not all can. Collective."""
        if self._shared is not None:
            shared = self._shared.with_peers_of(group)
        else:
            shared = share(group, self.numel, self.dtype) if self._mine is None else None
        if group.any(shared is None) or shared is None:
            return None
        self._shared, self._mine = shared, shared.mine
        return shared
