"""What becomes of an MPI error: which peer failed, in words, and no other rank left waiting for this one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hpcvol.comm import failures
from hpcvol.comm.calls import Call
from hpcvol.comm.surviving import survives_failures
from hpcvol.errors import CommError, HpcvolError, LostMemberError

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcvol.comm.group import Group


def explain(group: "Group", error: BaseException) -> HpcvolError | None:
    """Return the error that a user is to see for `error`, which came out of communication; None: as it is. Local.

    Where a peer has died the group is revoked first, so that ranks which wait for this one get an error too.
    """
    from mpi4py import MPI

    if isinstance(error, LostMemberError):
        revoke(group)
        return None
    if not isinstance(error, MPI.Exception):
        return None
    if not tells_of_loss(error):
        return CommError(f"{group.name_of_me}: MPI failed: {error.Get_error_string()}")
    revoke(group)
    dead = _failed(group)
    living = [rank for rank in range(group.size) if rank not in dead]
    who = failures.enumerate_names([group.name_of(rank) for rank in dead]) if dead else "another member"
    number, fingerprint, *_ = group.call_identity[-2:]
    waiting = failures.waiting_in([group.name_of_me], Call.from_fingerprint(fingerprint), number, group.calls.here())
    return failures.died(who, waiting, speaker=group.members[living[0]] if dead else group.members[group.rank])


def revoke(group: "Group") -> None:
    """End all communication over `group` on all of its ranks, where this MPI can. Local; the others get an error."""
    if survives_failures():
        for communicator in group.communicators():
            communicator.Revoke()


@contextmanager
def letting_nobody_wait(communicator: "MPI.Comm") -> Iterator[None]:
    """Run the body, which communicates over `communicator`; where it fails nobody is left waiting for this rank."""
    try:
        yield
    except BaseException:
        if survives_failures():
            communicator.Revoke()
        raise


def tells_of_loss(error: BaseException | None) -> bool:
    """Return whether `error` says that a member died, or that another one has found that out. Local."""
    from mpi4py import MPI

    if not isinstance(error, MPI.Exception):
        return isinstance(error, LostMemberError)
    return error.Get_error_class() in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)


def _failed(group: "Group") -> list[int]:
    """Return the ranks that this MPI knows to be dead."""
    from mpi4py import MPI

    everybody = group.communicator.Get_group()
    failed: MPI.Group = group.communicator.Get_failed()
    ranks: list[int] = MPI.Group.Translate_ranks(failed, list(range(failed.Get_size())), everybody)
    failed.Free()
    everybody.Free()
    return [rank for rank in ranks if rank >= 0]
