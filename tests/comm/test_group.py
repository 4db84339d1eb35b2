"""Groups of ranks."""

import socket

import pytest

from hpcvol.comm import Group, start


def test_ranks_members_and_hosts(group: Group) -> None:
    assert 0 <= group.rank < group.size
    assert group.members == tuple(range(group.size))
    assert group.hosts == (socket.gethostname(),) * group.size
    assert group.name_of_me == f"member {group.rank} ({socket.gethostname()})"


def test_start_gives_one_group_and_never_comm_world(group: Group) -> None:
    from mpi4py import MPI

    world = start()
    assert start() is world
    assert world.size >= group.size
    for ours in (world, group):
        assert MPI.Comm.Compare(ours.communicator, MPI.COMM_WORLD) != MPI.IDENT


def test_enough_threads_are_allowed(group: Group) -> None:
    from mpi4py import MPI

    assert group.size >= 1
    assert MPI.Query_thread() >= MPI.THREAD_SERIALIZED


def test_objects_are_gathered_and_broadcast(group: Group) -> None:
    assert group.gather_objects({"rank": group.rank}) == [{"rank": rank} for rank in range(group.size)]
    for root in range(group.size):
        assert group.broadcast_object(f"from {group.rank}", root) == f"from {root}"


def test_any_is_true_where_one_rank_says_so(group: Group) -> None:
    assert not group.any(False)
    assert group.any(group.rank == group.size - 1)


def test_split_keeps_member_ids_and_orders_by_key(group: Group) -> None:
    part = group.split(group.rank % 2, key=-group.rank)
    same = [rank for rank in range(group.size) if rank % 2 == group.rank % 2]
    assert part.members == tuple(reversed(same))
    assert part.members[part.rank] == group.rank
    part.barrier()
    part.close()


def test_on_one_machine_the_node_is_the_whole_group(group: Group) -> None:
    assert group.node is group


def test_a_closed_group_says_so(group: Group) -> None:
    part = group.split(0)
    part.close()
    part.close()
    with pytest.raises(RuntimeError, match="this group is closed"):
        part.barrier()
