"""One line of JSON for each event of a trace, in Chrome's trace event format, which Perfetto reads.

What Perfetto asks for beyond the format: ids of processes and threads from 1 to 2^32 - 1, those of threads different in
all processes; no negative time; no time in events that only name something.

References:
    Trace Event Format: "Complete Events" (X), "Instant Events" (i), "Metadata Events" (M). Perfetto's issues 363, 886,
    2048 and pull request 3273.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MAX_THREADS = 64
_MAX_NAME_CHARACTERS = 200
_MAX_ARGS_CHARACTERS = 2000

_encode = json.JSONEncoder(separators=(",", ":")).encode


def name_process(member: int, name: str) -> list[str]:
    """Return the events that give member `member` the title `name`, and its place in the order of members."""
    return [
        _line("process_name", "M", f'"pid":{_process(member)}', {"name": name}),
        _line("process_sort_index", "M", f'"pid":{_process(member)}', {"sort_index": member}),
    ]


def name_thread(member: int, track: int, name: str) -> list[str]:
    """Return the events that give track `track`, below `MAX_THREADS`, of a member the title `name`."""
    return [
        _line("thread_name", "M", _where(member, track), {"name": name}),
        _line("thread_sort_index", "M", _where(member, track), {"sort_index": track}),
    ]


def span(member: int, track: int, name: str, begin_ns: int, end_ns: int, args: Mapping[str, Any]) -> str:
    """Return a span from `begin_ns` to `end_ns`, which count from the trace's beginning."""
    times = f'"ts":{_microseconds(begin_ns)},"dur":{_microseconds(end_ns - begin_ns)}'
    return _line(name, "X", f"{times},{_where(member, track)}", args)


def instant(member: int, track: int, name: str, time_ns: int, args: Mapping[str, Any]) -> str:
    """Return something that takes no time."""
    return _line(name, "i", f'"ts":{_microseconds(time_ns)},"s":"t",{_where(member, track)}', args)


def _line(name: str, phase: str, middle: str, args: Mapping[str, Any]) -> str:
    # Numbers go in as text: a float has no room for nanoseconds after some weeks.
    text = _encode(args) if args else ""
    tail = f',"args":{text}' if 0 < len(text) <= _MAX_ARGS_CHARACTERS else ""
    return f'{{"name":{_quoted(name)},"ph":"{phase}",{middle}{tail}}}'


@lru_cache(256)
def _quoted(name: str) -> str:
    return _encode(name[:_MAX_NAME_CHARACTERS])


def _process(member: int) -> int:
    return member + 1


def _where(member: int, track: int) -> str:
    return f'"pid":{_process(member)},"tid":{_process(member) * MAX_THREADS + track}'


def _microseconds(time_ns: int) -> str:
    return f"{time_ns // 1000}.{time_ns % 1000:03d}"
