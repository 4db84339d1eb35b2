"""What a process answers when another member asks how it is; in a thread, whatever the main thread is doing."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from hpcvol.comm import processes
from hpcvol.comm.calls import Call, Calls, Progress, Row, live_calls
from hpcvol.comm.doing import what_it_does
from hpcvol.comm.failures import enumerate_names
from hpcvol.comm.peers import ANSWER_SECONDS, Peers
from hpcvol.comm.stacks import FORCE_SECONDS, all_stacks, force_stacks, main_stack, site
from hpcvol.comm.status_service import Message
from hpcvol.errors import HpcvolError, LostMemberError, MismatchError

# Over which processor time is told.
_SHARE_SECONDS = 5.0
_LOOK_SECONDS = 0.5
# How long it may take to say what is seen of another process.
PROCESS_SECONDS = _LOOK_SECONDS + FORCE_SECONDS + ANSWER_SECONDS


class Load:
    """How much processor time this process used lately; `take` is called now and then."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque([(time.monotonic(), time.process_time())])

    def take(self) -> None:
        """Take a sample. Local, microseconds."""
        now = time.monotonic()
        self._samples.append((now, time.process_time()))
        while len(self._samples) > 2 and self._samples[1][0] < now - _SHARE_SECONDS:
            self._samples.popleft()

    def share(self) -> float | None:
        """Return the processor time used lately as a share of one processor, None where it is too early to say."""
        began, used = self._samples[0]
        seconds = time.monotonic() - began
        return (time.process_time() - used) / seconds if seconds > _LOOK_SECONDS else None


class Answers:
    """Makes the answers of this process.

    Args:
        member: this process.
        load: of this process.
        fail: is told of a call that is to fail: `(calls, sequence, error)`.

    Attributes:
        demanded_at: when somebody asked for all stacks by a signal, `time.monotonic()`; minus infinity: never.
        peers: all members; set when they are known.
    """

    def __init__(self, member: int, load: Load, fail: Callable[[Calls, int, HpcvolError], None]) -> None:
        self._member = member
        self._load = load
        self._fail = fail
        self.demanded_at = float("-inf")
        self.peers: Peers | None = None

    def answer(self, question: Message) -> Message:
        """Return the answer; a question that is none raises. Local."""
        kinds = {
            "rows": self._rows,
            "account": self.account,
            "place": self._place,
            "process": self._process,
            "kill": self._kill,
        }
        made = self._take_error(question) if question["ask"] == "fail" else kinds[question["ask"]](question)
        return {"member": self._member, **made}

    def account(self, question: Message) -> Message:
        """Return what this process says of itself; `question["group"]` is the group whose call is known already."""
        doing = what_it_does()
        waits, waits_for = _what_it_waits_for(question["group"])
        return {
            "letter": processes.letter_of_main_thread(),
            "share": self._load.share(),
            "leaving": any(calls.leaving for calls in live_calls()),
            "doing": doing and list(doing),
            "waits": waits,
            "waits_for": waits_for,
            "stacks": {name: [list(frame) for frame in stack] for name, stack in all_stacks().items()},
            "demanded_seconds": min(time.monotonic() - self.demanded_at, 1e9),
        }

    def _rows(self, question: Message) -> Message:
        calls = _calls_of(question["group"])
        rows = {} if calls is None else calls.rows()
        return {"rows": {str(rank): row_to_wire(row) for rank, row in rows.items()}}

    def _place(self, question: Message) -> Message:
        calls = _calls_of(question["group"])
        return {"place": site(main_stack()) if calls is None else calls.seen_at()}

    def _process(self, question: Message) -> Message:
        """What the system says of another process of this host, which does not answer itself."""
        assert self.peers is not None
        peer = self.peers[question["of"]]
        before, began = peer.process.look(), time.monotonic()
        time.sleep(_LOOK_SECONDS)
        now, seconds = peer.process.look(), time.monotonic() - began  # on a busy machine more than was asked for
        share = (now.cpu_seconds - before.cpu_seconds) / seconds
        runs = now.letter not in (processes.GONE, "T", "t") and peer.stacks_fd >= 0
        forced = force_stacks(peer.process.pid, peer.stacks_fd) if runs else None
        return {"letter": now.letter, "share": share, "forced": forced}

    def _kill(self, question: Message) -> Message:
        """End a process of this host, which may be this one: it hangs, and the others go on without it."""
        assert self.peers is not None
        self.peers[question["of"]].process.kill()
        return {}

    def _take_error(self, question: Message) -> Message:
        calls = _calls_of(question["group"])
        if calls is not None:
            kind = MismatchError if question["kind"] == "MismatchError" else LostMemberError
            error = kind(question["error"], everywhere=True, speaker=question["speaker"])
            self._fail(calls, question["sequence"], error)
        return {}


def row_to_wire(row: Row) -> list[Any]:
    """Return `row` as values for JSON; times become how long ago they were, because clocks of hosts differ."""
    now, one = time.monotonic_ns(), row.progress
    call, left = (0 if one is None else one.fingerprint for one in (one.call, one.left))
    return [one.sequence, call, now - one.entered_ns, one.inside, left, now - one.left_ns, row.leaving, row.alive]


def row_from_wire(wire: list[Any]) -> Row:
    """Return the row that `row_to_wire` made, by this host's clock."""
    now = time.monotonic_ns()
    sequence, call, entered_ns, inside, left, left_ns, leaving, alive = wire
    calls = (Call.from_fingerprint(one) if one else None for one in (call, left))
    progress = Progress(sequence, next(calls), now - entered_ns, inside, next(calls), now - left_ns)
    return Row(progress, leaving, alive)


def _calls_of(name: str) -> Calls | None:
    return next((calls for calls in live_calls() if calls.name == name), None)


def _what_it_waits_for(known: str) -> tuple[str | None, list[int]]:
    """Return the call that this process is in, of a group other than `known`, and the members that it waits for."""
    for calls in live_calls():
        mine = calls.progress(calls.me)
        if calls.name == known or not mine.inside or mine.call is None or mine.call.name == "exit":
            continue
        missing = [rank for rank, row in calls.rows().items() if row.progress.sequence < mine.sequence]
        names = [calls.names[rank] for rank in missing]
        text = f"{mine.call} (call {mine.sequence} of a group of {len(calls.members)})"
        return text + (f", for {enumerate_names(names)}" if names else ""), [calls.members[rank] for rank in missing]
    return None, []
