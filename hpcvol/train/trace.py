"""The trace of a run: what every member did when, on one clock, for ui.perfetto.dev."""

import logging
import math
import os
import threading
import time
from pathlib import Path

from hpcvol import tracing
from hpcvol.comm import Group, shared, together
from hpcvol.comm.clock import compare_clocks
from hpcvol.comm.files import pass_file
from hpcvol.durable import writing
from hpcvol.errors import HpcvolError
from hpcvol.train import trace_events, trace_file
from hpcvol.train.aligned_clock import AlignedClock
from hpcvol.train.run_directory import TRACE_NAME

logger = logging.getLogger("hpcvol")

_EACH_NBYTES = 4 * 2**20
_TOTAL_NBYTES = 128 * 2**20
_LEAST_NBYTES = 64 * 2**10

_MAIN = threading.main_thread().name
_FLUSH_SECONDS = 0.5
# How long the end of a run waits for a file system that does not answer.
_PATIENCE_SECONDS = 10.0
# Clocks are compared soon for a first estimate of their drift, and then less and less often.
_FIRST_COMPARISON_SECONDS = 10.0
_LARGEST_INTERVAL_SECONDS = 300.0


class Trace:
    """Has this member's spans written to the run's trace from now on. Collective, as its methods are but for `close`.

    All members that see one run directory write to one file there, each to a place of its own, twice a second and by a
    thread. Members on hosts that do not see the first member's have a file of their host's, `trace.HOST.json` under the
    same path; `finish` joins them.

    Args:
        group: the live ranks.
        run_dir: the run directory as this member sees it; made on hosts that have none.

    Raises:
        HpcvolError: the file cannot be made; the same on every member.
    """

    def __init__(self, group: Group, run_dir: Path) -> None:
        self._group = group
        self._run_dir = run_dir
        with together(group, "making the run directory"):
            if group.node.rank == 0:
                with writing(run_dir):
                    run_dir.mkdir(parents=True, exist_ok=True)
        (sharing,) = shared(group, [run_dir])
        self._makers = sorted(set(sharing.first))
        self._maker = sharing.first[group.rank]
        self._path = self._path_of(self._maker)
        places: dict[int, trace_file.Place] = {}
        with together(group, "making the trace"):
            if group.rank == self._maker:
                ranks = [rank for rank, first in enumerate(sharing.first) if first == group.rank]
                places = self._make(ranks)
        everybody = group.gather_objects(places)
        self._place = everybody[self._maker][group.rank]
        with together(group, "opening the trace"), writing(self._path):
            self._place.open(self._path)
        self._zero_ns = group.broadcast_object(tracing.now())
        self._clock = AlignedClock(compare_clocks(group, tracing.now))
        self._member = group.members[group.rank]
        self._tracks = {_MAIN: 0}
        self._place.label(trace_events.name_thread(self._member, 0, "main"))
        self._whole = True
        self._gap_ns: int | None = None
        self._told = False
        self._lock = threading.Lock()
        self._plan_comparison(_FIRST_COMPARISON_SECONDS)
        tracing.start()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, name="hpcvol-trace", daemon=True)
        self._thread.start()

    @property
    def wants_clocks_compared(self) -> bool:
        """Whether it is time for `compare_clocks`; members may differ about it."""
        return time.monotonic() >= self._compare_at

    def compare_clocks(self) -> None:
        """Compare clocks again, because they drift apart."""
        began_ns = tracing.now()
        measured = compare_clocks(self._group, tracing.now)
        with self._lock:
            now_ns = tracing.now()
            off_ns = measured.offset_ns - self._clock.offset(measured.at_ns)
            self._clock.correct(measured, now_ns)
        tracing.record("compare clocks", began_ns, off_us=off_ns / 1e3, round_trip_us=measured.round_trip_ns / 1e3)
        self._plan_comparison(min(2 * self._interval, _LARGEST_INTERVAL_SECONDS))

    def abandon(self) -> None:
        """A member has died: clocks are not compared any more, and the file is left as after a crash. Local."""
        self._whole = False
        self._compare_at = math.inf

    def finish(self) -> None:
        """End the trace: one small file. What goes wrong is a warning; what was written stays."""
        if not self._whole:
            return
        self.compare_clocks()
        self.close()
        self._group.barrier()  # nobody writes any more
        try:
            self._join()
        except HpcvolError as error:
            if self._group.rank == 0:
                logger.warning("the trace is not complete: %s", error)

    def close(self) -> None:
        """Write what there is and record no more. Local; twice is once."""
        self._ended.set()
        self._thread.join(_PATIENCE_SECONDS)
        if not self._thread.is_alive():
            self._flush()
            self._place.close()
        tracing.stop()

    def _path_of(self, maker: int) -> Path:
        return self._run_dir / (TRACE_NAME if maker == 0 else f"trace.{self._group.hosts[maker]}.json")

    def _make(self, ranks: list[int]) -> dict[int, trace_file.Place]:
        """Make the file for members at `ranks`; the one of an earlier start keeps another name."""
        group, path = self._group, self._path
        names = [line for r in ranks for line in trace_events.name_process(group.members[r], group.name_of(r))]
        with writing(path):
            if path.exists():
                os.replace(path, path.with_name(f"{path.stem}.previous.json"))
            places = trace_file.create(path, names, len(ranks), _place_nbytes(group.size))
        return dict(zip(ranks, places, strict=True))

    def _join(self) -> None:
        """Make the first member's file small and whole, and remove those of other hosts."""
        parts = []
        with together(self._group, "ending the trace"):
            if self._group.rank == self._maker != 0:
                trace_file.compact(self._path)
        for maker in self._makers[1:]:
            part = self._run_dir / f".{TRACE_NAME}.{maker}"
            pass_file(self._group, maker, self._path_of(maker), part if self._group.rank == 0 else None)
            parts.append(part)
        with together(self._group, "ending the trace"):
            if self._group.rank == 0:
                trace_file.compact(self._path, parts)
                for part in parts:
                    part.unlink()
        with together(self._group, "ending the trace"):
            if self._group.rank == self._maker != 0:
                self._path.unlink()

    def _plan_comparison(self, seconds: float) -> None:
        self._interval = seconds
        self._compare_at = time.monotonic() + seconds

    def _write(self) -> None:
        while not self._ended.wait(_FLUSH_SECONDS):
            self._flush()

    def _flush(self) -> None:
        """Write what ended since the last time; after an error say so and record no more."""
        try:
            with self._lock:
                for one in tracing.take():
                    self._add(one)
                self._place.flush()
        except OSError as error:
            tracing.stop()
            self._place.close()
            logger.warning("%s: %s cannot be written: %s", self._group.name_of_me, self._path, error)

    def _add(self, one: tracing.Span) -> None:
        name, thread, began_ns, ended_ns, args = one
        begin, end = (max(0, self._clock.aligned(ns) - self._zero_ns) for ns in (began_ns, ended_ns))
        self._place.add(trace_events.span(self._member, self._track(thread), name, begin, end, args))
        if self._place.has_kept_first and self._gap_ns is None:
            self._gap_ns = end
        if self._place.has_dropped and not self._told:
            self._told = True
            text = "spans from here on made room for later ones"
            self._place.label([trace_events.instant(self._member, 0, text, self._gap_ns or 0, {})])

    def _track(self, thread: str) -> int:
        """Return the track of the thread of that name; the last one is for all that come after it."""
        if thread not in self._tracks and len(self._tracks) < trace_events.MAX_THREADS:
            self._tracks[thread] = len(self._tracks)
            self._place.label(trace_events.name_thread(self._member, self._tracks[thread], thread))
        return self._tracks.get(thread, trace_events.MAX_THREADS - 1)


def _place_nbytes(num_members: int) -> int:
    """Return the room of each member: less where all would take too much."""
    each = min(_EACH_NBYTES, _TOTAL_NBYTES // num_members)
    return max(_LEAST_NBYTES, each - each % trace_file.BLOCK_NBYTES)
