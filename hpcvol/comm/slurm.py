"""What a Slurm job has been given, as its environment says. Local; runs no command of Slurm's."""

import re
from dataclasses import dataclass

from hpcvol import environment


@dataclass(frozen=True)
class Allocation:
    """The nodes of the job that this process is in.

    Attributes:
        job: its id.
        num_nodes: how many nodes it has.
        num_tasks: how many it asked for, one a node where it did not say.
        num_slots: how many ranks Open MPI starts there before it calls that too many.
        num_cores: processors on all nodes, as Slurm counts them (`CPUs`).
        num_gpus: on all nodes, if they are like this one.
    """

    job: str
    num_nodes: int
    num_tasks: int
    num_slots: int
    num_cores: int
    num_gpus: int

    def describe(self, num_ranks: int) -> str:
        """Return what `num_ranks` ranks use of it, and how to ask for more where something is left."""
        nodes = "1 node" if self.num_nodes == 1 else f"{self.num_nodes} nodes"
        said = f"Slurm job {self.job}: {nodes}, {self.num_cores} cores"
        if self.num_gpus:
            said += f", {self.num_gpus} GPUs"
        per_task = int(environment.variable("SLURM_CPUS_PER_TASK") or 1)
        if self.num_gpus > num_ranks:
            return (
                f"{said}, of which {num_ranks} are used (--ntasks-per-node {self.num_gpus // self.num_nodes} uses all)"
            )
        if not self.num_gpus and self.num_cores > num_ranks * per_task:
            each = self.num_cores // (self.num_nodes * per_task)
            return f"{said} for {num_ranks} {'rank' if num_ranks == 1 else 'ranks'} (--ntasks-per-node {each} uses all)"
        return said


def allocation() -> Allocation | None:
    """Return the allocation that this process is in, None outside a Slurm job."""
    job = environment.variable("SLURM_JOB_ID")
    if job is None:
        return None
    num_nodes = int(environment.variable("SLURM_JOB_NUM_NODES") or 1)
    num_slots = sum(numbers(environment.variable("SLURM_TASKS_PER_NODE") or f"1(x{num_nodes})"))
    return Allocation(
        job,
        num_nodes,
        int(environment.variable("SLURM_NTASKS") or num_nodes),
        num_slots,
        sum(numbers(environment.variable("SLURM_JOB_CPUS_PER_NODE") or f"1(x{num_nodes})")),
        int(environment.variable("SLURM_GPUS_ON_NODE") or 0) * num_nodes,
    )


def numbers(text: str) -> list[int]:
    """Return the numbers that Slurm writes as `2(x3),1`: 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(number) for number, times in found for _ in range(int(times or 1))]
