"""`strategy.codec = "auto"`: what gradients are encoded by between nodes, or that they are not, by what either costs.

How long a step takes is predicted from measurements: of what it takes besides, of the link (a short and a long
exchange), of each codec's kernels (on a sample), and of how long gradients travel behind the backward pass (between the
first bucket and the end of the pass). With the steps that a codec takes to the same loss that is what it costs. After a
few steps the least is chosen, the same on all members, because all decide from the same numbers. What steps then take
is worth more than what was predicted of them: what is predicted to cost about as much, or less, is tried, each once.
When steps come to take much more or less than before, all is measured and chosen anew.
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

# What is chosen among, and how many times as many steps each takes to a loss as no codec (benchmarks/time_to_loss.py).
# Others may be faster a step, and are for those who know their model.
# ("ternary" and "int4" took fewer there, which is no promise.)
CANDIDATES = {"bf16": 1.0, "int8": 1.0, "int4": 1.0, "ternary": 1.0, "powersgd:8+bf16": 1.1}

# Steps before the first choice: the first ones compile, and lay out.
_SETTLING = 3
# Steps between two looks at whether the choice still is right.
_INTERVAL = 10
# By how much a step's time may change before the link is measured again.
_CHANGED = 1.5
# What is expected to cost at most so much of what there is, is tried; what took so much, is taken.
_NEAR, _WORTH = 1.1, 0.95
# Messages that measure a link: long ones grow until they take long enough, because buffers take up the first part.
_SHORT_NBYTES, _LONG_NBYTES = 1 << 10, 1 << 19
_LONG_SECONDS, _MOST_NBYTES = 0.05, 1 << 27
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
        expected_seconds: that a step is expected to take with what was chosen; None before anything is measured.
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
        self._pushed = 0.0
        self._ended: float | None = None
        self._besides: list[float] = []
        self._behind: list[float] = []
        self._added: list[float] = []
        self._predicted: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._steps = 0
        self.notes: list[str] = []
        self.expected_seconds: float | None = None

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
        if self._ended is not None:
            self._besides.append(began - self._ended)
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
        self._ended = time.perf_counter()

    def drop(self) -> None:
        """Give up what travels."""
        if self._is_plain:
            self._plain.drop()

    @property
    def _is_plain(self) -> bool:
        return self._wanted == self._chosen == "none" and not self._flushes

    def _look(self) -> None:
        """Choose: at first, and where steps say that something else costs less. Collective."""
        added, besides = median(self._added), min(self._besides)
        mine = added + besides, median(self._behind), besides, self._feedback.norm > 0
        told = list(zip(*self._group.gather_objects(mine), strict=True))
        took, behind, besides, holds = max(told[0]), min(told[1]), max(told[2]), any(told[3])
        self._added, self._behind, self._besides = [], [], []
        if not self._several:
            return
        usual = self._took.setdefault(self._chosen, took)
        if not self._predicted or not usual / _CHANGED <= took <= usual * _CHANGED:
            prices = self._measure()
            expected = {name: besides + self._expect(prices, name, behind) for name in ("none", *self._sizes)}
            # What travels between nodes is not the same for all members.
            self._predicted, self._took = self._group.broadcast_object(expected), {}
            self._say(self._choose(), f"{_words(prices.link)}; ")
        else:
            self._took[self._chosen] = took
            if (wanted := self._choose()) != self._wanted:
                self._say(wanted, "")
        self.expected_seconds = self._took.get(self._wanted, self._predicted[self._wanted])
        self._flushes = self._wanted == "none" and (holds or self._chosen != "none")

    def _choose(self) -> str:
        """Return what costs least, by what steps have taken with it, or what is worth a trial. Local."""
        costs = {
            name: CANDIDATES.get(name, 1.0) * self._took.get(name, seconds) for name, seconds in self._predicted.items()
        }
        if not self._took:
            return min(costs, key=lambda name: costs[name])
        now = costs[self._wanted]
        trials = [name for name in costs if name not in self._took and costs[name] < _NEAR * now]
        best = min(trials or self._took, key=lambda name: costs[name])
        return best if trials or costs[best] < _WORTH * now else self._wanted

    def _say(self, wanted: str, link: str) -> None:
        told = []
        for name, seconds in self._predicted.items():
            more = CANDIDATES.get(name, 1.0)
            how = "measured" if name in self._took else "expected"
            told.append(
                f"{name} {1e3 * self._took.get(name, seconds):.0f} {how}"
                + (f" (in {more} times as many steps)" if more > 1 else "")
            )
        self._wanted = wanted
        self.notes.append(
            f'strategy.codec = "auto": {wanted} from here on; {link}milliseconds a step: {", ".join(told)}'
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
        link = Cost(0.0, 0.0) if self._peers is None else link_cost(self._peers)
        kernels = {name: _kernel_seconds(name, self._dtype) for name in CANDIDATES}
        told = self._group.gather_objects((link.alpha, link.beta, kernels))
        slowest = Cost(max(alpha for alpha, _, _ in told), max(beta for _, beta, _ in told))
        return Prices(slowest, {name: max(one[name] for _, _, one in told) for name in kernels})


def link_cost(peers: Group) -> Cost:
    """Return what a message costs where each rank sends to all others. Collective."""
    rows: list[Measurement] = []
    nbytes = _SHORT_NBYTES
    while True:
        buffers = [PayloadBuffer(nbytes) for _ in range(peers.size)]
        buffers[peers.rank].used = nbytes
        times = []
        for _ in range(_TURNS):
            peers.barrier()
            began = time.perf_counter()
            spread(peers, buffers)
            times.append(time.perf_counter() - began)
        if nbytes > _SHORT_NBYTES:
            rows = rows[:_TURNS]  # the shortest, and the last
        rows += [Measurement(1, (peers.size - 1) * nbytes, seconds) for seconds in times]
        slowest = max(peers.gather_objects(median(times)))
        if nbytes > _SHORT_NBYTES and (slowest > _LONG_SECONDS or 4 * nbytes * peers.size > _MOST_NBYTES):
            return fit(rows)
        nbytes = _LONG_NBYTES if nbytes == _SHORT_NBYTES else 4 * nbytes


def _words(link: Cost) -> str:
    rate = 8e-6 / max(link.beta, 1e-12)
    return f"the link has {1e3 * link.alpha:.1f} ms and {rate:.0f} Mbit/s"


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
            used = codec.encode(x, residual if codec.residual_rows else None, Seeds.of(0, step, 0), payload)
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
