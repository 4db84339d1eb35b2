"""What Open MPI is told before it starts, but for what the environment or mpiexec say. Others do not look at it."""

# As long a message goes over TCP at once. A longer one waits until its receiver has been asked, a way there and back:
# over a link of 20 ms and 100 Mbit/s a step of 26 MB of gradients took 3.7 s in longer messages, and 2.7 s in such.
EAGER_NBYTES = 2**18
_HEADER_NBYTES = 2**12  # room for Open MPI's own, and pages stay whole

EAGER = {
    "OMPI_MCA_btl_tcp_eager_limit": str(EAGER_NBYTES + _HEADER_NBYTES),
    "OMPI_MCA_btl_tcp_rndv_eager_limit": str(EAGER_NBYTES + _HEADER_NBYTES),
    "OMPI_MCA_btl_tcp_max_send_size": str(EAGER_NBYTES + _HEADER_NBYTES),
}

# Where ranks outlive others.
SURVIVING = {
    # Its collectives hang over communicators that a newcomer is in, and where two daemons are on one host.
    "OMPI_MCA_coll_han_priority": "0",
    # Else the end of the program waits for those that have died, now and then for ever.
    "OMPI_MCA_async_mpi_finalize": "1",
}
