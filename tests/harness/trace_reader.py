"""Reading a trace as strictly as the format and Perfetto ask for, and what has to hold of every one."""

import json
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

_KEYS = {
    "M": {"name", "ph", "pid", "tid", "args"},
    "X": {"name", "ph", "ts", "dur", "pid", "tid", "args"},
    "i": {"name", "ph", "ts", "s", "pid", "tid", "args"},
}


@dataclass(frozen=True)
class Slice:
    """A span of a trace; times in ns since it began."""

    member: str
    thread: str
    name: str
    begin: int
    end: int
    args: dict[str, Any]


@dataclass(frozen=True)
class TraceContent:
    """What a trace holds: titles of its members in the order in which they are shown, spans as they were written."""

    members: list[str]
    slices: list[Slice]
    notes: list[str]

    def named(self, name: str, member: str) -> list[Slice]:
        """Return the spans of that name on a member, by time."""
        return sorted((s for s in self.slices if (s.name, s.member) == (name, member)), key=lambda s: s.begin)


def read_trace(path: Path) -> TraceContent:
    """Return what the trace `path` holds; fail where it is not as the format says."""
    events = json.loads(path.read_bytes(), parse_float=Decimal, parse_constant=_refuse)
    assert isinstance(events, list)
    titles: dict[tuple[str, int, int], str] = {}
    order: dict[int, int] = {}
    for event in events:
        assert set(event) <= _KEYS[event["ph"]], event
        assert 1 <= event["pid"] < 2**32
        assert 1 <= event.get("tid", 1) < 2**32
        if event["ph"] == "M" and event["name"] in ("process_name", "thread_name"):
            key = (event["name"], event["pid"], event.get("tid", 0))
            assert key not in titles
            titles[key] = event["args"]["name"]
        if event["name"] == "process_sort_index":
            order[event["pid"]] = event["args"]["sort_index"]
    threads = [thread for name, _, thread in titles if name == "thread_name"]
    assert len(set(threads)) == len(threads), "two processes have threads of one id"
    members = [titles["process_name", process, 0] for process in sorted(order, key=lambda process: order[process])]
    slices = [
        Slice(
            titles["process_name", event["pid"], 0],
            titles["thread_name", event["pid"], event["tid"]],
            event["name"],
            begin := _ns(event["ts"]),
            begin + _ns(event["dur"]),
            event.get("args", {}),
        )
        for event in events
        if event["ph"] == "X"
    ]
    return TraceContent(members, slices, [event["name"] for event in events if event["ph"] == "i"])


def check_spans(trace: TraceContent) -> None:
    """Fail where a span begins before the trace, ends before it begins, or overlaps another of its thread."""
    tracks = defaultdict(list)
    for one in trace.slices:
        assert 0 <= one.begin <= one.end, one
        tracks[one.member, one.thread].append(one)
    for track in tracks.values():
        around: list[Slice] = []
        for one in sorted(track, key=lambda s: (s.begin, -s.end)):
            while around and around[-1].end <= one.begin:
                around.pop()
            assert not around or one.end <= around[-1].end, f"{one} overlaps {around[-1]}"
            around.append(one)


def _ns(microseconds: Any) -> int:
    ns = Decimal(microseconds) * 1000
    assert ns == int(ns)
    return int(ns)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")
