"""An ordered set of live ranks over one MPI communicator."""

import socket
from typing import TYPE_CHECKING, Any

from hpcvol.comm.calls import Calls

if TYPE_CHECKING:
    from mpi4py import MPI


class Group:
    """An ordered set of live ranks. All methods that move data are collective: every rank of the group calls them.

    Users get groups from `hpcvol.comm.start()` and `Group.split`.

    Attributes:
        rank: position of this process in the group, 0 to size - 1.
        size: number of ranks.
        hosts: host name by rank.
        members: member id by rank. Ids are given once, at the start, and never reused; a split keeps them.
        node: the ranks of this group that share memory with this one (this group itself where all of them do).
        calls: the collective calls made so far, where the other ranks of the node can see them.
    """

    def __init__(self, communicator: "MPI.Comm", member: int) -> None:
        """Take over `communicator`. Collective over it.

        Args:
            communicator: owned by the group from here on; never COMM_WORLD itself, so that nobody else's messages mix
                with ours.
            member: the id of this process.
        """
        self._communicator: MPI.Comm | None = communicator
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        facts = communicator.allgather((member, socket.gethostname()))
        self.members: tuple[int, ...] = tuple(member for member, _ in facts)
        self.hosts: tuple[str, ...] = tuple(host for _, host in facts)
        self.node: Group = self._split_by_node()
        self.calls = Calls(self)

    @property
    def communicator(self) -> "MPI.Comm":
        """The mpi4py communicator, for `hpcvol.comm` alone."""
        if self._communicator is None:
            raise RuntimeError("this group is closed")
        return self._communicator

    @property
    def name_of_me(self) -> str:
        """This process in words for messages, such as `member 2 (node07)`."""
        return self.name_of(self.rank)

    def name_of(self, rank: int) -> str:
        """Return the process at `rank` in words for messages, such as `member 2 (node07)`. Local."""
        return f"member {self.members[rank]} ({self.hosts[rank]})"

    def split(self, color: int, key: int = 0) -> "Group":
        """Return the group of all ranks that gave the same `color`, ordered by (`key`, rank here). Collective.

        Args:
            color: zero or more.
            key: where in the new group this rank wants to be.
        """
        return Group(self.communicator.Split(color, key), self.members[self.rank])

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.communicator.Barrier()

    def broadcast_object(self, obj: Any, root: int = 0) -> Any:
        """Return the `obj` of rank `root` on all ranks; what the others gave is not looked at. It has to pickle."""
        return self.communicator.bcast(obj, root)

    def gather_objects(self, obj: Any) -> list[Any]:
        """Return the `obj` of every rank, by rank, on all ranks. It has to pickle."""
        return self.communicator.allgather(obj)

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on at least one rank, on all ranks: one small all-reduce."""
        from mpi4py import MPI

        return bool(self.communicator.allreduce(flag, MPI.LOR))

    def union(self, flags: int) -> int:
        """Return the bitwise or of the `flags` of all ranks, on all ranks: one small all-reduce."""
        from mpi4py import MPI

        return int(self.communicator.allreduce(flags, MPI.BOR))

    def close(self) -> None:
        """Give the communicator back. Collective. Twice is once; using the group afterwards is an error."""
        if self._communicator is None:
            return
        if self.node is not self:
            self.node.close()
        self._communicator.Free()
        self._communicator = None
        del self.calls  # its shared memory: a group that is its own node waits for the garbage collector

    def _split_by_node(self) -> "Group":
        from mpi4py import MPI

        node = self.communicator.Split_type(MPI.COMM_TYPE_SHARED)
        if node.Get_size() == self.size:
            node.Free()
            return self
        return Group(node, self.members[self.rank])
