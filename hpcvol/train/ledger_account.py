"""Reading the ledger of a run: whether it holds together, and what it credits each member with. Loads no torch."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcvol.elastic.ledger import LEDGER_NAME, Head, from_ranges, hash_of
from hpcvol.elastic.units import Batching
from hpcvol.errors import HpcvolError

Line = dict[str, Any]


@dataclass
class Account:
    """What a ledger holds.

    Attributes:
        path: the file.
        hashes: of all whole lines, the first of them that of no line.
        lines: what they say, `{}` for what is not a JSON object.
        tail: bytes of a line that was not written to its end.
    """

    path: Path
    hashes: list[str]
    lines: list[Line]
    tail: int

    def digest_of(self, version: int) -> str | None:
        """Return the digest of a version, None where there is none."""
        found = [line.get("digest") for line in self.lines if line.get("version") == version and "event" not in line]
        return str(found[-1]) if found else None

    def leads_to(self, head: Mapping[str, Any]) -> bool:
        """Return whether the ledger has `head`, as a checkpoint or a summary tells it."""
        lines = head["lines"]
        return isinstance(lines, int) and 0 <= lines < len(self.hashes) and self.hashes[lines] == head["hash"]


def read_account(run_dir: Path) -> Account | None:
    """Return what the ledger of a run holds, None where there is none. Local.

    Raises:
        OSError: it cannot be read.
    """
    path = run_dir / LEDGER_NAME
    if not path.exists():
        return None
    *whole, tail = path.read_bytes().split(b"\n")
    return Account(path, [Head().hash, *map(hash_of, whole)], [_parsed(line) for line in whole], len(tail))


def verify_lines(account: Account) -> Iterator[str]:
    """Yield what is wrong with a ledger, one sentence each: its chain, its versions, its units."""
    path, last, view, batching = account.path, 0, 0, None
    steps: set[int] = set()  # since the last version that has a digest
    for number, (line, before) in enumerate(zip(account.lines, account.hashes, strict=False), 1):
        if line.get("prev") != before:
            yield f"{path}: line {number} does not follow from the one before: something was changed or taken out"
        try:
            if line.get("event") in ("start", "resume"):
                batching = Batching(line["samples"], line["batch_size"], line["unit_size"])
                view = line["view"]
                if line["version"] != last:
                    yield f"{path}: line {number} goes on from version {line['version']}, after version {last}"
                last = line["version"]
                steps.clear()
            elif "event" not in line:
                if line["version"] != last + 1:
                    yield f"{path}: line {number} is of version {line['version']}, after version {last}"
                last = line["version"]
                steps.add(line.get("step", last - 1))
                if line["digest"] is not None:
                    if steps != set(range(last - len(steps), last)):
                        yield f"{path}: line {number}: the versions up to {last} are not of one step each"
                    steps.clear()
                if line["view"] < view:
                    yield f"{path}: line {number} is of view {line['view']}, after view {view}"
                view = line["view"]
                if batching is None:
                    yield f"{path}: line {number} is of a version, and no start was entered before"
                else:
                    yield from (f"{path}: line {number}: {fault}" for fault in _faults_of_step(line, batching))
        except (KeyError, TypeError, ValueError, AttributeError, HpcvolError) as error:
            yield f"{path}: line {number} is no line of a ledger ({type(error).__name__}: {error})"


def credit(account: Account) -> dict[str, dict[str, float]]:
    """Return what each member has computed: units, samples and seconds, by `member 2 (node07)`.

    Lines that make no sense are left out: `verify_lines` names them.
    """
    hosts: dict[int, str] = {}
    total: dict[str, dict[str, float]] = {}
    for line in account.lines:
        if "event" in line:
            hosts |= dict(zip(line.get("members", ()), line.get("hosts", ()), strict=False))
            continue
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            for member, share in line["members"].items():
                name = f"member {member} ({hosts[int(member)]})"
                found = {
                    "units": len(from_ranges(share["units"])),
                    **{key: share[key] for key in ("samples", "seconds")},
                }
                mine = total.setdefault(name, dict.fromkeys(found, 0))
                for key, value in found.items():
                    mine[key] += value
    return total


def last_roles(account: Account) -> dict[str, Any] | None:
    """Return who does what by the last line that tells (`hpcvol.elastic.roles.tree`); None where no line does."""
    keys = ("members", "hosts", "groups", "shards", "computes")
    told = [line for line in account.lines if "event" in line and {"members", "hosts"} <= line.keys()]
    return {key: told[-1][key] for key in keys if key in told[-1]} if told else None


def _parsed(line: bytes) -> Line:
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _faults_of_step(line: Line, batching: Batching) -> Iterator[str]:
    """Yield units of a version that nobody or more than one member is said to have computed, and wrong counts."""
    counts = {span.index: span.count for span in batching.units(line.get("step", line["version"] - 1))}
    times: Counter[int] = Counter()
    for member, share in line["members"].items():
        units = from_ranges(share["units"])
        times.update(units)
        samples = sum(counts.get(unit, 0) for unit in units)
        if samples != share["samples"]:
            yield f"member {member} has {share['samples']} samples of units that hold {samples}"
    for unit in sorted(times.keys() | counts.keys()):
        if times[unit] != (expected := int(unit in counts)):
            yield f"unit {unit} of version {line['version']} was computed {times[unit]} times, expected {expected}"
            return
