"""The watch: a thread that finds out for whom this member waits in vain or for long, and says so.

It sleeps nearly always. Every half second it looks at the board of each group. A call that lasts longer than a second
is looked into, again after twice the time and so on. What the other ranks of the node are doing stands on their boards;
on every other node one member is asked what stands on the boards there, by one member of this node for all. That tells
whether members disagree, died or left: then the call fails on all that wait in it. Who waits inside the MPI library can
not be told to raise: there the thread itself ends the run. After `warn_seconds` the lowest rank that waits reports.
"""

import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from hpcvol.comm import ending
from hpcvol.comm.accounts import Account, account_from
from hpcvol.comm.answers import PROCESS_SECONDS, Answers, Load, row_from_wire
from hpcvol.comm.calls import Calls, Progress, Row, live_calls, locate_with
from hpcvol.comm.faults import letting_nobody_wait
from hpcvol.comm.group import Group
from hpcvol.comm.peers import Peer, Peers, in_threads, new_token
from hpcvol.comm.report import Case, everything, missing_ranks, notice, report
from hpcvol.comm.stacks import StackFile, main_stack, site
from hpcvol.comm.status_service import StatusService
from hpcvol.comm.stuck import stuck_members
from hpcvol.comm.surviving import survives_failures
from hpcvol.comm.trouble import Verdict, error_for, is_sure, judge, waiting_ranks
from hpcvol.errors import HpcvolError

_PERIOD_SECONDS = 0.5
_FIRST_LOOK_SECONDS = 1.0
_MOST_BETWEEN_LOOKS_SECONDS = 15.0
# How long a member that was told to fail may take to raise, before it is taken to be inside the MPI library.
_GRACE_SECONDS = 2.0
# And one that is about to raise: it asks others for their places, on a busy machine for long.
_RAISING_SECONDS = 20.0
# For its place in the code: both sides of a mismatch ask each other while all start to fail, on busy cores.
_TIMES_TO_ASK = 3
# How many members a report tells about.
_MAX_ACCOUNTS = 8
_NS = 1e-9

_watch: "Watch | None" = None


@dataclass
class _Wait:
    """A call that this rank is in, as the watch has followed it."""

    sequence: int
    next_look: float = _FIRST_LOOK_SECONDS
    # When the time began that counts: later than the call where members had a reason to let others wait.
    since: float = field(default=0.0)
    noticed: bool = False
    reported: bool = False
    failed_at: float | None = None
    error: HpcvolError | None = None


def start(world: Group) -> None:
    """Watch over all calls of this process from now on, to its end. Collective; nothing for one rank alone."""
    global _watch
    if world.size > 1 and _watch is None:
        _watch = Watch(world)


def meet_newcomer(world: Group) -> None:
    """Watch over a member that has joined too, and have it watch. Collective over all members and the newcomer."""
    if _watch is None:
        start(world)
    else:
        _watch.meet(world)


def stop() -> None:
    """Watch no more. Local."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch = None


def set_patience(warn_seconds: float, abort_seconds: float) -> None:
    """Say after what time of waiting a member reports for whom, and after what time the run ends. Local.

    Args:
        warn_seconds: of the report.
        abort_seconds: of the end; 0: never.
    """
    if _watch is not None:
        _watch.warn_seconds, _watch.abort_seconds = warn_seconds, abort_seconds


class Watch:
    """The watch of one process. Made collectively over all members.

    Attributes:
        warn_seconds, abort_seconds: see `set_patience`.
    """

    def __init__(self, world: Group) -> None:
        self.warn_seconds = 30.0
        self.abort_seconds = 1800.0
        self._load = Load()
        self._stack_file = StackFile()
        member = world.members[world.rank]
        self._answers = Answers(member, self._load, self._told_to_fail)
        # Not by methods of the group: the calls that users see begin with number 1.
        self._token: bytes | None = None
        self._service: StatusService | None = None
        self.meet(world)
        self._waits: weakref.WeakKeyDictionary[Calls, _Wait] = weakref.WeakKeyDictionary()
        locate_with(self._locate)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hpcvol-watch", daemon=True)
        self._thread.start()

    def meet(self, world: Group) -> None:
        """Get to know all members. Collective over them."""
        with letting_nobody_wait(world.communicator):
            token = world.communicator.bcast(self._token or new_token())
        if self._token is None:
            self._token = token
            with suppress(OSError):  # no network at all: then no other host either, and the boards tell most
                self._service = StatusService(token, self._answers.answer)
        port = self._service.port if self._service is not None else 0
        me = Peer.current(world.members[world.rank], port, self._stack_file.fd)
        with letting_nobody_wait(world.communicator):
            self._peers = self._answers.peers = Peers(token, me, world.communicator.allgather(me))

    def close(self) -> None:
        """End the threads."""
        self._closed.set()
        self._thread.join(_PERIOD_SECONDS)
        if self._service is not None:
            self._service.close()
        self._stack_file.close()

    def _run(self) -> None:
        while not self._closed.wait(_PERIOD_SECONDS):
            self._load.take()
            self._look_at_all()
            if self._stack_file.demanded():
                self._answers.demanded_at = time.monotonic()
                self._show_everything()

    def _look_at_all(self) -> None:
        # Not in the loop above: its variable would keep a closed group's memory until the next look.
        for calls in live_calls():
            self._look_at(calls)

    def _look_at(self, calls: Calls) -> None:
        mine = calls.progress(calls.me)
        quiet = mine.call is None or mine.call.name == "exit"  # who has come to the end waits as long as it takes
        if not mine.inside or quiet or len(calls.members) == 1:
            self._waits.pop(calls, None)
            return
        wait = self._waits.get(calls)
        if wait is None or wait.sequence != mine.sequence:
            wait = self._waits[calls] = _Wait(mine.sequence)
        seconds = time.monotonic() - mine.entered_ns * _NS
        if wait.failed_at is not None:
            self._end_if_it_stays(calls, wait)
        elif seconds >= wait.next_look and not calls.abandoned:
            due = (wait.since + limit - seconds for limit in (self.warn_seconds, self.abort_seconds))
            pause = min(seconds, _MOST_BETWEEN_LOOKS_SECONDS, *(left for left in due if left > 0))
            wait.next_look = seconds + pause
            self._look_into(calls, mine, wait, seconds)

    def _look_into(self, calls: Calls, mine: Progress, wait: _Wait, seconds: float) -> None:
        seen = calls.rows()
        node = waiting_ranks(mine.sequence, seen)
        me = calls.ranks[calls.me]
        if min(node, default=me) == me:
            seen |= self._rows_of_other_nodes(calls, seen)
        verdict = judge(mine, seen)
        if calls.progress(calls.me) != mine:
            return
        if is_sure(verdict, calls):
            self._fail(calls, mine, verdict, seen, wait)
        elif verdict is not None:
            wait.next_look = seconds
        elif min(waiting_ranks(mine.sequence, seen), default=me) == me and _is_outermost(mine):
            self._report_if_due(calls, mine, seen, wait, seconds)

    def _fail(self, calls: Calls, mine: Progress, verdict: Verdict, seen: dict[int, Row], wait: _Wait) -> None:
        """Let the call fail here and on the other members of this node that wait in it."""
        calls.place = calls.seen_at()
        error = error_for(calls, mine, verdict, seen)
        if verdict.kind != "died" or not survives_failures():  # MPI lets go of those who wait for a dead member
            wait.failed_at, wait.error = time.monotonic(), error
        calls.fail(mine.sequence, error)
        told = {
            "ask": "fail",
            "group": calls.name,
            "sequence": mine.sequence,
            "kind": type(error).__name__,
            "error": str(error),
            "speaker": error.speaker,
        }
        me = calls.ranks[calls.me]
        mates = [rank for rank in waiting_ranks(mine.sequence, calls.rows()) if rank != me]
        self._peers.ask_all([calls.members[rank] for rank in mates], told)

    def _told_to_fail(self, calls: Calls, sequence: int, error: HpcvolError) -> None:
        mine = calls.progress(calls.me)
        if mine.inside and mine.sequence == sequence:
            self._waits[calls] = _Wait(sequence, failed_at=time.monotonic(), error=error)
            calls.fail(sequence, error)

    def _end_if_it_stays(self, calls: Calls, wait: _Wait) -> None:
        """End the run where the main thread has not raised: it is inside the MPI library, and never will."""
        assert wait.failed_at is not None
        raising = calls.raising_seconds()
        if calls.abandoned or (raising is not None and raising < _RAISING_SECONDS):
            return
        waited = time.monotonic() - wait.failed_at
        speaks = wait.error is not None and wait.error.speaker == self._peers.me.member
        if waited > (_GRACE_SECONDS if calls.polls else 0.0) + (0.0 if speaks else _GRACE_SECONDS):
            _say(f"hpcvol: error: {wait.error}")
            ending.end_all(ending.EXIT_FAILED)

    def _report_if_due(self, calls: Calls, mine: Progress, seen: dict[int, Row], wait: _Wait, seconds: float) -> None:
        counted = seconds - wait.since
        ends = 0 < self.abort_seconds <= counted
        if counted < self.warn_seconds and not ends:
            return
        missing = missing_ranks(mine, seen, len(calls.members))
        me = calls.ranks[calls.me]
        subjects = missing or [rank for rank in range(len(calls.members)) if rank != me]
        told = self._accounts([calls.members[rank] for rank in subjects[:_MAX_ACCOUNTS]], calls.name)
        if calls.progress(calls.me) != mine:
            return
        accounts = list(told.values())
        in_a_circle = accounts and all(account.waits is not None for account in accounts)
        if in_a_circle and min(told) < self._peers.me.member:
            return  # it reports the same from its side, and ends the run
        place = site(main_stack())
        case = Case(mine, seconds, calls.names, seen, accounts, place, os.getpid(), self._peers.me.host)
        if accounts and all(account.excused for account in accounts):
            wait.since = seconds
            if not wait.noticed:
                wait.noticed = True
                _say(notice(case))
        elif ends and (killed := self._kill_stuck(told, [calls.members[rank] for rank in missing])):
            wait.since = seconds
            _say(report(case, self.abort_seconds, ends=True, killed=killed))
        elif ends:
            _say(report(case, self.abort_seconds, ends=True))
            ending.end_all(ending.EXIT_FAILED)
        elif not wait.reported:
            wait.reported = True
            _say(report(case, self.abort_seconds))

    def _kill_stuck(self, told: dict[int, Account], missing: list[int]) -> list[str]:
        """Kill the members that keep the others waiting, where these outlive that; return their names."""
        if not survives_failures():
            return []
        return [self._peers[member].name for member in stuck_members(told, missing) if self._kill(member)]

    def _kill(self, member: int) -> bool:
        """Have a process killed by its host: by this process, a neighbour of it, or itself; return whether it was."""
        if self._peers.is_near(member):
            self._peers[member].process.kill()
            return True
        _, *neighbours = self._peers.machine_of(member)
        for one in [*neighbours, member]:
            try:
                if self._peers.ask(one, {"ask": "kill", "of": member}) is not None:
                    return True
            except ConnectionRefusedError:
                continue
        return False

    def _rows_of_other_nodes(self, calls: Calls, seen: dict[int, Row]) -> dict[int, Row]:
        """Ask members of other nodes until the boards of all have been told, or nobody is left to ask."""
        found: dict[int, Row] = {}
        machines: dict[str, list[int]] = {}
        for rank, member in enumerate(calls.members):
            if rank not in seen:
                machines.setdefault(self._peers[member].machine, []).append(rank)
        nodes = list(machines.values())

        def ask_node(index: int) -> None:
            silent = 0
            for rank in nodes[index]:
                if rank not in found and silent < 2:
                    rows = self._rows_of(calls, rank)
                    silent += not rows
                    found.update(rows)

        in_threads(ask_node, range(len(nodes)))
        return found

    def _rows_of(self, calls: Calls, rank: int) -> dict[int, Row]:
        """Return what the member at `rank` knows of its node; that it died where its host says so; nothing else."""
        try:
            answer = self._peers.ask(calls.members[rank], {"ask": "rows", "group": calls.name})
        except ConnectionRefusedError:
            return {rank: Row(Progress(0, None, 0, False, None, 0), leaving=False, alive=False)}
        rows = {} if answer is None else answer["rows"]
        return {int(one): row_from_wire(wire) for one, wire in rows.items()}

    def _accounts(self, members: Iterable[int], group: str) -> dict[int, Account]:
        """Return accounts by member, of `members` and of those whom they wait for themselves."""
        found: dict[int, Account] = {}
        left = list(members)
        while left and len(found) < _MAX_ACCOUNTS:
            answers = self._peers.ask_all(left, {"ask": "account", "group": group})
            waited_for: list[int] = []
            for member in left:
                answer = answers.get(member, {})
                peer = self._peers[member]
                if "letter" in answer:
                    found[member] = account_from(peer.name, peer.process.pid, answer)
                    waited_for += answer["waits_for"]
                else:
                    found[member] = self._account_of_silent(member)
            me = self._peers.me.member
            left = [member for member in dict.fromkeys(waited_for) if member not in found and member != me]
        return found

    def _account_of_silent(self, member: int) -> Account:
        """Return what this host, or other members of the member's own, see of it."""
        peer, question = self._peers[member], {"ask": "process", "of": member}
        seen = self._answers.answer(question) if self._peers.is_near(member) else None
        for neighbour in self._peers.machine_of(member)[1:3]:
            with suppress(ConnectionRefusedError):
                seen = seen or self._peers.ask(neighbour, question, PROCESS_SECONDS)
        if seen is None:
            return Account(peer.name, peer.process.pid, answered=False)
        letter, share, forced = seen["letter"], seen["share"], seen["forced"]
        return Account(peer.name, peer.process.pid, False, letter, share, forced=forced)

    def _locate(self, calls: Calls, rank: int) -> str:
        with suppress(ConnectionRefusedError):
            for _ in range(_TIMES_TO_ASK):
                answer = self._peers.ask(calls.members[rank], {"ask": "place", "group": calls.name})
                if answer is not None:
                    return str(answer["place"])
        return ""

    def _show_everything(self) -> None:
        """Print the stacks of all members, unless a lower one was asked too: a launcher passes the signal to all."""
        time.sleep(2 * _PERIOD_SECONDS)  # until all that were asked have noticed
        everybody, me = self._peers.members(), self._peers.me.member
        answers = self._peers.ask_all(everybody, {"ask": "account", "group": ""})
        asked = [member for member in answers if answers[member].get("demanded_seconds", 1e9) < 10 * _PERIOD_SECONDS]
        if min(asked, default=me) < me:
            return
        accounts = []
        for member in everybody:
            peer = self._peers[member]
            answer = answers.get(member, {})
            if "letter" in answer:
                accounts.append(account_from(peer.name, peer.process.pid, answer))
            else:
                accounts.append(self._account_of_silent(member))
        _say(everything(accounts))


def _is_outermost(mine: Progress) -> bool:
    """Whether this process is in no earlier call of another group, of which `mine` is then a part."""
    everything = (calls.progress(calls.me) for calls in live_calls())
    return not any(one.inside and one.entered_ns < mine.entered_ns for one in everything)


def _say(text: str) -> None:
    """Print in one write: other ranks use the same pipe."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
