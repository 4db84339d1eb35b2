"""Who does what in a run: what the ledger says of it, and a small tree for people. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpcvol.elastic.ledger import ranges

# So many branches of a node are shown; of more the first ones, and how many others there are.
_MOST_BRANCHES = 8

Tree = tuple[str, Sequence["Tree"]]


def tree(line: Mapping[str, Any]) -> Tree:
    """Return the roles that a line of a ledger tells of: supernodes or hosts, and in each who serves and who computes.

    Args:
        line: `members` and `hosts`; where there are any, `groups`, ids of the members of each (servers that compute
            nothing may be in none), `shards`, by member the shards that it holds, and `computes`, ids of those who
            compute units.
    """
    members: Sequence[int] = line["members"]
    hosts = dict(zip(members, line["hosts"], strict=True))
    groups = [group for one in line.get("groups", ()) if (group := [member for member in one if member in hosts])]
    supernodes = len(groups)
    is_grouped = bool(groups)
    if is_grouped:
        groups += [[member] for member in members if not any(member in group for group in groups)]
    else:
        groups = [[m for m in members if hosts[m] == host] for host in dict.fromkeys(line["hosts"])]
    branches: list[Tree] = []
    for group in groups:
        places = ", ".join(dict.fromkeys(hosts[member] for member in group))
        roles = _roles(group, line)
        who = _named(group)
        if is_grouped:
            named = f"{who} ({places})" + (f"; member {group[0]} leads" if len(group) > 1 else "")
        else:
            named = f"{places}: {who}"
        if len(roles) == 1:
            role = roles[0][0]
            branches.append((f"{named}{'' if role == _COMPUTES else f'; {role}'}", []))
        else:
            branches.append((named, [(f"{_named(doers)}: {role}", []) for role, doers in roles]))
    what = f"{supernodes} supernodes of " if is_grouped else ""
    return f"{what}{len(members)} {'member' if len(members) == 1 else 'members'}", branches


def drawn(root: Tree) -> Iterator[str]:
    """Yield the lines of a tree."""
    text, branches = root
    yield text
    shown = list(branches[:_MOST_BRANCHES])
    if len(branches) > len(shown):
        shown[-1:] = [(f"... and {len(branches) - len(shown) + 1} more", [])]
    for number, branch in enumerate(shown):
        last = number == len(shown) - 1
        for row, below in enumerate(drawn(branch)):
            yield f"{('`- ' if last else '|- ') if row == 0 else ('   ' if last else '|  ')}{below}"


_COMPUTES = "computes"


def _roles(group: Sequence[int], line: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    """Return what members of a group do, and who does it."""
    shards: Mapping[str, Sequence[int]] = line.get("shards", {})
    works = line.get("computes")
    found: dict[str, list[int]] = {}
    for member in group:
        held = shards.get(str(member), ())
        parts = [f"has {'shard' if len(held) == 1 else 'shards'} {ranges(held)}"] if held else []
        if works is None or member in works:
            parts.append(_COMPUTES)
        found.setdefault(", ".join(parts) or "idle", []).append(member)
    return list(found.items())


def _named(members: Sequence[int]) -> str:
    return f"{'member' if len(members) == 1 else 'members'} {ranges(members).replace(',', ', ')}"
