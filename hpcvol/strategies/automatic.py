"""`strategy.codec = "auto"`: what gradients are encoded by between nodes, or that they are not, by what either costs.

What is added to a step is predicted from measurements: of the link (a short and a long exchange), of each codec's
kernels (on a sample), and of how long gradients travel behind the backward pass (between the first bucket and the end
of the pass). After a few steps the least is chosen, the same on all members, because all decide from the same numbers.
When steps take much more or less than after that, the link is measured again and the choice made anew.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from hpcvol.codecs import Codec, LowRank, Seeds, parse
from hpcvol.collectives.encoded import how
from hpcvol.collectives.low_rank import LowRankSum, Matrix
from hpcvol.collectives.payloads import PayloadBuffer, spread
from hpcvol.collectives.table import Cost, Measurement, fit
from hpcvol.comm import Group
from hpcvol.strategies.feedback import Feedback
from hpcvol.strategies.reducer import FloatReducer

# What is chosen among. All of them take a model as far as no codec does in about as many steps (benchmarks/
# time_to_loss.py); others may be faster a step, and are for those who know their model.
CANDIDATES = ("bf16", "int8", "powersgd:4+bf16")

# Steps before the first choice: the first ones compile, and lay out.
_SETTLING = 3
# Steps between two looks at whether the choice still is right.
_INTERVAL = 20
# By how much a step's time may change before the link is measured again.
_CHANGED = 1.5
# A codec has to save this much of what is added to a step without one.
_WORTH = 0.9
_SHORT_NBYTES, _LONG_NBYTES = 1 << 10, 1 << 19
_TURNS = 3
_SAMPLE_NUMEL = 1 << 18


@dataclass(frozen=True)
class Prices:
    """What decides: the same on all members.

    Attributes:
        link: what a message and a byte between two nodes cost.
        kernels: seconds an element that encoding and decoding take, by codec.
    """

    link: Cost
    kernels: dict[str, float]


class Automatic:
    """Sums gradients as they are, or encoded, whatever costs less. Made collectively.

    Args:
        group: all members.
        feedback: what encoded sums keep; what it holds is sent before gradients travel as they are.
        peers: the ranks between which gradients travel, this one among them; None where it carries none.
        plain: sums them as they are.
        encoded: makes what sums them encoded; None for what sums them as they are with what residuals hold. Collective.
        numel: elements between nodes.
        dtype: of them.
        matrices: those in the vector.
        bucket_nbytes: how many bytes travel at once where they are not encoded.

    Attributes:
        notes: each choice and what it rests on, in words; the same on all members.
    """

    def __init__(
        self,
        group: Group,
        feedback: Feedback,
        peers: Group | None,
        plain: FloatReducer,
        encoded: Callable[[Codec | LowRank | None], FloatReducer],
        numel: int,
        dtype: "np.dtype[Any]",
        matrices: Sequence[Matrix],
        bucket_nbytes: int,
    ) -> None:
        self.vector = plain.vector
        self._group = group
        self._feedback = feedback
        self._peers = peers
        self._plain = plain
        self._encoded = encoded
        self._numel, self._dtype = numel, dtype
        self._several = group.node.size < group.size
        self._sizes = {} if peers is None or not self._several else _sizes(peers, numel, dtype, matrices)
        self._num_buckets = max(1, -(-numel * dtype.itemsize // bucket_nbytes))
        self._now: FloatReducer = plain
        self._chosen = self._wanted = "none"
        self._flushes = False  # whether the next step sends what residuals hold, and all else as it is
        self._prices: Prices | None = None
        self._pushed = 0.0
        self._behind: list[float] = []
        self._added: list[float] = []
        self._usual: float | None = None
        self._steps = 0
        self.notes: list[str] = []

    @property
    def chosen(self) -> str:
        """What gradients were encoded by last."""
        return self._chosen

    def push(self, bucket: int) -> None:
        """Let it travel, where it is not to be encoded."""
        if bucket == 0:
            self._pushed = time.perf_counter()
        if self._is_plain:
            self._plain.push(bucket)

    def finish(self, weight: int, own: int) -> None:
        """Sum in the way that was chosen, and choose for the next step."""
        began = time.perf_counter()
        self._behind.append(began - self._pushed)
        if self._flushes or self._wanted != self._chosen:
            self._now = self._encoded(None if self._flushes else parse(self._wanted))
        self._now.finish(weight, own)
        if self._flushes:
            self._now = self._plain
        self._chosen, self._flushes = self._wanted, False
        self._added.append(time.perf_counter() - began)
        self._steps += 1
        if self._steps == _SETTLING or (self._steps > _SETTLING and self._steps % _INTERVAL == 0):
            self._look()

    def drop(self) -> None:
        """Give up what travels."""
        if self._is_plain:
            self._plain.drop()

    @property
    def _is_plain(self) -> bool:
        return self._wanted == self._chosen == "none" and not self._flushes

    def _look(self) -> None:
        """Choose, at first and where steps have come to take another time. Collective."""
        told = self._group.gather_objects((median(self._added), median(self._behind), self._feedback.norm > 0))
        added, behind = max(one for one, _, _ in told), min(one for _, one, _ in told)
        holds = any(one for _, _, one in told)
        self._added, self._behind = [], []
        if self._prices is not None and self._usual is None:
            self._usual = added
            return
        if self._usual is not None and self._usual / _CHANGED <= added <= self._usual * _CHANGED:
            return
        self._usual = None
        if self._several:
            prices = self._prices = self._measure()
            choice = self._choose(prices, behind) if self._group.rank == 0 else None
            self._wanted, note = self._group.broadcast_object(choice)
            self.notes.append(note)
        self._flushes = self._wanted == "none" and (holds or self._chosen != "none")

    def _choose(self, prices: Prices, behind: float) -> tuple[str, str]:
        """Return the choice, and why. Local."""
        expected = {name: self._expect(prices, name, behind) for name in ("none", *self._sizes)}
        best = min(expected, key=lambda name: expected[name])
        wanted = best if expected[best] < _WORTH * expected["none"] else "none"
        costs = ", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in expected.items())
        return wanted, (
            f'strategy.codec = "auto": {wanted} from here on; the link has {1e3 * prices.link.alpha:.1f} ms and '
            f"{8e-6 / max(prices.link.beta, 1e-12):.0f} Mbit/s; milliseconds expected to be added to a step: {costs}"
        )

    def _expect(self, prices: Prices, name: str, behind: float) -> float:
        """Return by how many seconds a step is expected to become longer. Local."""
        link, ranks = prices.link, 1 if self._peers is None else self._peers.size
        nbytes = self._numel * self._dtype.itemsize
        if name == "none":
            travels = link.seconds(2 * self._num_buckets * (ranks - 1), 2 * (ranks - 1) / ranks * nbytes)
            return max(travels - behind, travels / self._num_buckets)
        waits, payload = self._sizes[name]
        return link.seconds(waits, payload) + prices.kernels[name] * self._numel

    def _measure(self) -> Prices:
        """Time the link and the kernels; the slowest counts. Collective."""
        rows = []
        if self._peers is not None:
            for nbytes in (_SHORT_NBYTES, _LONG_NBYTES):
                buffers = [PayloadBuffer(nbytes) for _ in range(self._peers.size)]
                buffers[self._peers.rank].used = nbytes
                for _ in range(_TURNS):
                    self._peers.barrier()
                    began = time.perf_counter()
                    spread(self._peers, buffers)
                    seconds = time.perf_counter() - began
                    rows.append(Measurement(1, (self._peers.size - 1) * nbytes, seconds))
        link = fit(rows) if rows else Cost(0.0, 0.0)
        kernels = {name: _kernel_seconds(name, self._dtype) for name in CANDIDATES}
        told = self._group.gather_objects((link.alpha, link.beta, kernels))
        slowest = Cost(max(alpha for alpha, _, _ in told), max(beta for _, beta, _ in told))
        return Prices(slowest, {name: max(one[name] for _, _, one in told) for name in kernels})


def _sizes(peers: Group, numel: int, dtype: "np.dtype[Any]", matrices: Sequence[Matrix]) -> dict[str, tuple[int, int]]:
    """Return of each candidate how often a rank waits for others, and how many bytes it sends."""
    sizes = {}
    ranks = peers.size
    for name in CANDIDATES:
        codec = parse(name)
        assert codec is not None
        if isinstance(codec, LowRank):
            thin = LowRankSum(peers, codec, numel, dtype, matrices)
            sizes[name] = 2, (ranks - 1) * thin.thin_nbytes
        elif how(codec, ranks) == "two_shots":
            sizes[name] = 2, 2 * (ranks - 1) * codec.room(-(-numel // ranks), dtype)
        else:
            sizes[name] = 1, (ranks - 1) * codec.room(numel, dtype)
    return sizes


def _kernel_seconds(name: str, dtype: "np.dtype[Any]") -> float:
    """Return the seconds an element that encoding, and decoding of two payloads, take. Local."""
    codec = parse(name)
    assert codec is not None
    side = int(_SAMPLE_NUMEL**0.5)
    x = np.random.default_rng(0).standard_normal(side * side).astype(dtype)
    residual, times = np.zeros_like(x), []
    for step in range(_TURNS + 1):
        began = time.perf_counter()
        if isinstance(codec, LowRank):
            _low_rank_step(codec, x, residual, side)
        else:
            payload = np.empty(codec.room(x.size, dtype), np.uint8)
            used = codec.encode(x, residual if codec.has_feedback else None, Seeds.of(0, step, 0), payload)
            for _ in range(2):
                codec.accumulate(payload[:used], Seeds.of(0, step, 0), x)
        times.append(time.perf_counter() - began)
    return min(times[1:]) / x.size  # the first one compiles


def _low_rank_step(codec: LowRank, x: Any, residual: Any, side: int) -> None:
    from hpcvol.kernels import low_rank
    from hpcvol.kernels.orthogonalise import orthogonalise

    p = np.ones((codec.rank, side), x.dtype)
    q = np.random.default_rng(0).standard_normal((codec.rank, side)).astype(x.dtype)
    matrix, kept = x.reshape(side, side), residual.reshape(side, side)
    low_rank.project(matrix, kept, q, p)
    orthogonalise(p)
    low_rank.project_back(kept, p, q)
    low_rank.reconstruct(p, q, kept, None)
    low_rank.reconstruct(p, q, None, matrix)
