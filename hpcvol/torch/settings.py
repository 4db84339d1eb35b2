"""How a run trains, besides its model, optimizer and data."""

from dataclasses import dataclass

from hpcvol.codecs import AnyCodec
from hpcvol.codecs import parse as parse_codec
from hpcvol.collectives import Algorithm
from hpcvol.elastic.dealing import Terms
from hpcvol.errors import ConfigError
from hpcvol.guarantees import require, require_dealing, require_sharing, require_verifiable
from hpcvol.strategies.combinations import parse
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.reducer import BUCKET_NBYTES
from hpcvol.strategies.supernodes import Supernodes

_EQUAL = Terms("equal")


@dataclass(frozen=True)
class Settings:
    """How a run trains, besides its model, optimizer and data.

    Args:
        batch_size: samples a step, whatever the number of workers.
        unit_size: samples a unit at most.
        sum: "exact": the same bits whichever members computed the units; "float": faster, other bits at other counts.
        seed: decides sample order and random numbers.
        clip_norm: largest 2-norm of a step's gradient; None does not clip.
        algorithm: as for `hpcvol.collectives.allreduce`.
        bucket_nbytes: how many bytes of gradients are combined at once.
        elastic: whether the run goes on without members that die, where the MPI can.
        combine: what becomes of members' gradients under the float sum, as `strategy.combine`.
        codec: what they are encoded by, as `strategy.codec`.
        verify_share: of units that two members compute, to be compared (`elastic.verify_share`).
        dealing: which member computes what.
        servers: who holds parameters and the optimizer's state in shards; None: every member holds all of them.
        supernodes: groups that members form, and how often these combine what they have; None: every step.
    """

    batch_size: int
    unit_size: int
    sum: str = "exact"
    seed: int = 0
    clip_norm: float | None = None
    algorithm: Algorithm = "auto"
    bucket_nbytes: int = BUCKET_NBYTES
    elastic: bool = True
    combine: str = "mean"
    codec: AnyCodec = "none"
    verify_share: float = 0.0
    dealing: Terms = _EQUAL
    servers: ParameterServer | None = None
    supernodes: Supernodes | None = None

    def __post_init__(self) -> None:
        robust = parse(self.combine) is not None
        parse_codec(self.codec)
        require("run", self.sum, robust=robust, encoded=self.codec != "none")
        require_verifiable(self.sum, self.verify_share)
        require_dealing(self.sum, self.dealing.kind, robust=robust)
        require_sharing(
            self.sum,
            self.codec,
            self.servers,
            self.supernodes,
            robust=robust,
            share=self.verify_share,
            weighed=bool(self.dealing.priorities or self.dealing.limits),
        )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed = {self.seed}: expected a number from 0 to 2^63 - 1")

    @property
    def is_asynchronous(self) -> bool:
        """Whether members do not compute each step together, but push to servers what they have computed."""
        return self.servers is not None and self.servers.is_asynchronous

    @property
    def period(self) -> int:
        """Steps that a group of members does by itself."""
        return 1 if self.supernodes is None else self.supernodes.period

    @property
    def workers_train_apart(self) -> bool:
        """Whether those that push to servers apply the optimizer by themselves."""
        return (
            self.is_asynchronous
            and self.servers is not None
            and (self.period > 1 or self.servers.elastic_averaging > 0)
        )

    @property
    def codec_of_gradients(self) -> AnyCodec:
        """What members encode that they sum in each step."""
        if self.is_asynchronous:
            return "none"
        spec = self.supernodes
        return self.codec if spec is None or spec.average or spec.codec == "none" else spec.codec

    @property
    def codec_of_pushes(self) -> AnyCodec:
        """What is encoded on its way to servers."""
        spec = self.supernodes
        return self.codec if spec is None or spec.codec == "none" else spec.codec
