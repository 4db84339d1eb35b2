"""How ranks combine vectors: one file an algorithm, and one that chooses."""

from hpcvol.collectives.algorithms import Algorithm, check_algorithm, check_name
from hpcvol.collectives.all_gather import all_gather
from hpcvol.collectives.all_to_all import all_to_all
from hpcvol.collectives.allreduce import allreduce
from hpcvol.collectives.barrier import barrier
from hpcvol.collectives.broadcast import broadcast
from hpcvol.collectives.choose import table_of, use_table
from hpcvol.collectives.gather import gather
from hpcvol.collectives.point_to_point import receive, send
from hpcvol.collectives.reduce_scatter import reduce_scatter
from hpcvol.collectives.scatter import scatter
from hpcvol.collectives.table import Table
from hpcvol.comm.vectors import Op, Vector

__all__ = [
    "Algorithm",
    "Op",
    "Table",
    "Vector",
    "all_gather",
    "all_to_all",
    "allreduce",
    "barrier",
    "broadcast",
    "check_algorithm",
    "check_name",
    "gather",
    "receive",
    "reduce_scatter",
    "scatter",
    "send",
    "table_of",
    "use_table",
]
