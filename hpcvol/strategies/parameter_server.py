"""The parameter server: members that hold parts of the parameters, and of what an optimizer keeps of them.

Every bucket of the gradients is cut into as many portions as there are servers, and what is numbered alike is a shard:
so each bucket goes to all servers at once, as soon as it is computed. The sums of a shard come to be with its holders
alone, and its parameters go back to all members.

References:
    Li et al., "Scaling Distributed Machine Learning with the Parameter Server", OSDI 2014.
    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020, section 5.1
    (servers = "all": every member holds a part of the optimizer's state, and works).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpcvol.errors import ConfigError

if TYPE_CHECKING:
    from hpcvol.comm import Group

PULLS = ("exact", "bf16", "fp16")


@dataclass(frozen=True)
class ParameterServer:
    """Members hold the parameters and the optimizer's state in shards, instead of each holding all of both.

    Args:
        servers: how many members hold a shard each, and compute no units; "all": every member holds one, and computes.
        replicas: how many further members hold a copy of each shard: so many may die at a time and nothing is lost. At
            0 the death of a server ends the run, which goes on from its last checkpoint.
        max_staleness: 0: all members compute each step together. Above, each step is computed by one worker (a member,
            or a group: `Supernodes`), from parameters that lack at most what others have computed since: a worker may
            be so many of its pushes ahead of the slowest one; math.inf: as far as it will.
        rate_by_staleness: with max_staleness above 0, divide the learning rate of a step by 1 + m, where m pushes were
            applied since its parameters were pulled.
        compensation: with max_staleness above 0, how far a gradient is corrected for what the parameters have become
            since: g + compensation · g² · (now - then) by element; the parameters that it was computed from are sent
            with it. Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay Compensation", ICML 2017 (there
            called λ).
        elastic_averaging: with max_staleness above 0, above 0: each worker trains parameters of its own, with the
            optimizer's state its own too, and at each push its and the servers', as it has pulled them last, are drawn
            towards each other by so much of what is between them. Zhang, Choromanska, LeCun: "Deep Learning with
            Elastic Averaging SGD", NIPS 2015, algorithm 1 (there called α; 0.9 divided by the number of workers is its
            default; `Supernodes.period` is its τ).
        pull: with max_staleness above 0, "bf16" or "fp16" rounds parameters that workers pull from other nodes; those
            that are kept, and those that all have where members meet, are exact.

    Raises:
        ConfigError: values that cannot be.
    """

    servers: int | Literal["all"] = "all"
    replicas: int = 0
    max_staleness: float = 0
    rate_by_staleness: bool = False
    compensation: float = 0.0
    elastic_averaging: float = 0.0
    pull: str = "exact"

    def __post_init__(self) -> None:
        if self.servers != "all" and self.servers < 1:
            raise ConfigError(f'strategy.servers = {self.servers}: expected at least 1, or "all"')
        if self.replicas < 0:
            raise ConfigError(f"strategy.replicas = {self.replicas}: expected 0 or more copies of each shard")
        if not self.max_staleness >= 0 or (self.max_staleness % 1 and not math.isinf(self.max_staleness)):
            raise ConfigError(
                f"strategy.max_staleness = {self.max_staleness}: expected 0 (synchronous), a whole number of steps, or "
                "inf (asynchronous)"
            )
        if not 0 <= self.compensation < math.inf:
            raise ConfigError(f"strategy.compensation = {self.compensation}: expected a number of 0 or more")
        if not 0 <= self.elastic_averaging < 1:
            raise ConfigError(
                f"strategy.elastic_averaging = {self.elastic_averaging}: expected 0, or a share below 1, such as 0.9 "
                "divided by the number of workers"
            )
        of_stale = [name for name in ("rate_by_staleness", "compensation", "elastic_averaging") if getattr(self, name)]
        if of_stale and not self.is_asynchronous:
            raise ConfigError(f"strategy.{of_stale[0]}: no step is stale where strategy.max_staleness = 0")
        if self.elastic_averaging and len(of_stale) > 1:
            raise ConfigError(
                f"strategy.elastic_averaging does not go together with {of_stale[0]}: a worker's gradients are applied "
                "by itself, and are not stale; leave one out"
            )
        if self.pull not in PULLS:
            known = ", ".join(f'"{one}"' for one in PULLS)
            raise ConfigError(f'strategy.pull = "{self.pull}": expected one of {known}')
        if self.pull != "exact" and not self.is_asynchronous:
            raise ConfigError(
                f'strategy.pull = "{self.pull}" with strategy.max_staleness = 0: weights are those of all_reduce '
                'there, to the bit; set pull = "exact", or max_staleness above 0'
            )

    @property
    def is_asynchronous(self) -> bool:
        """Whether members do not compute each step together."""
        return self.max_staleness > 0

    def choose(self, group: "Group") -> tuple[int, ...]:
        """Return the ids of the members that serve, spread over nodes. Collective.

        Of each node one before a second one of any; the first member, which writes and prints, only if it has to.

        Raises:
            ConfigError: there are too few members; on all of them.
        """
        if self.servers == "all":
            chosen = group.members
        else:
            if self.servers >= group.size:
                raise ConfigError(
                    f"strategy.servers = {self.servers} of {_members(group.size)} leaves no worker: ask for at most "
                    f'{group.size - 1}, start more members, or set servers = "all"',
                    everywhere=True,
                )
            places = group.gather_objects(group.node.rank)
            order = sorted(range(group.size), key=lambda rank: (rank == 0, places[rank], rank))
            chosen = tuple(sorted(group.members[rank] for rank in order[: self.servers]))
        if self.replicas >= len(chosen):
            raise ConfigError(
                f"strategy.replicas = {self.replicas} of each shard, and {_members(len(chosen))} to hold them: ask for "
                f"at most {len(chosen) - 1}, or for more servers",
                everywhere=True,
            )
        return chosen


def _members(count: int) -> str:
    return "1 member" if count == 1 else f"{count} members"
