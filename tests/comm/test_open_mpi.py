"""What Open MPI is told: a piece of a vector leaves over TCP before its receiver was asked."""

import numpy as np
import pytest
from launched import RunRanks

from hpcvol.collectives.slices import pieces
from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of
from hpcvol.comm.open_mpi import EAGER_NBYTES

BY_TCP = {"OMPI_MCA_btl": "tcp,self", "OMPI_MCA_pml": "ob1"}
# Rank 1 receives the piece when rank 0 has said that it has left, or given up.
PROGRAM = """
import sys, time
import numpy as np
from hpcvol.collectives.slices import PIECE_NBYTES
from hpcvol.comm import start
group = start()
piece = np.zeros(PIECE_NBYTES + int(sys.argv[1]), np.uint8)
if group.rank == 0:
    request, due = group.communicator.Isend(piece, 1, tag=1), time.monotonic() + 2
    while not (left := request.Test()) and time.monotonic() < due:
        time.sleep(0.01)
    group.communicator.send(left, 1, tag=2)
    request.Wait()
    print("it left" if left else "it waited")
else:
    group.communicator.recv(source=0, tag=2)
    group.communicator.Recv(piece, 0, tag=1)
"""


@pytest.mark.parametrize(("more_nbytes", "found"), [(0, "it left"), (2**13, "it waited")])
def test_a_piece_leaves_before_its_receiver_was_asked(run_ranks: RunRanks, more_nbytes: int, found: str) -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("of Open MPI")
    ended = run_ranks(2, ["-c", PROGRAM, str(more_nbytes)], variables=BY_TCP)
    assert (ended.returncode, ended.stdout) == (0, f"{found}\n"), ended.stderr


def test_the_users_own_limit_holds(run_ranks: RunRanks) -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("of Open MPI")
    ended = run_ranks(2, ["-c", PROGRAM, "0"], variables={**BY_TCP, "OMPI_MCA_btl_tcp_eager_limit": "65536"})
    assert (ended.returncode, ended.stdout) == (0, "it waited\n"), ended.stderr


def test_pieces_of_a_long_vector_wait_until_their_receiver_was_asked() -> None:
    """What leaves without is copied by the receiver's MPI, all of it."""
    for numel, eager in ((10, True), (2**21, True), (2**21 + 1, False), (2**24, False)):
        vector = np.zeros(numel, np.float32)
        found = list(pieces(vector))
        assert sum(piece.size for piece in found) == numel
        assert (found[0].nbytes <= EAGER_NBYTES) == eager
