"""The tree of who does what."""

from typing import Any

import pytest

from hpcvol.elastic.roles import drawn, tree

TREES: dict[str, tuple[dict[str, Any], str]] = {
    "one": ({"members": [0], "hosts": ["a"]}, "1 member\n`- a: member 0"),
    "hosts": (
        {"members": [0, 1, 4], "hosts": ["a", "a", "b"]},
        "3 members\n|- a: members 0-1\n`- b: member 4",
    ),
    "supernodes": (
        {"members": [0, 1, 2, 3], "hosts": ["a", "a", "b", "c"], "groups": [[0, 1], [2, 3], [7]]},
        "2 supernodes of 4 members\n|- members 0-1 (a); member 0 leads\n`- members 2-3 (b, c); member 2 leads",
    ),
    "supernodes and a server": (
        {
            "members": [0, 1, 2, 3],
            "hosts": ["a", "a", "b", "b"],
            "groups": [[0], [2, 3]],
            "shards": {"1": [0]},
            "computes": [0, 2, 3],
        },
        "2 supernodes of 4 members\n|- member 0 (a)\n|- members 2-3 (b); member 2 leads\n`- member 1 (a); has shard 0",
    ),
    "servers": (
        {
            "members": [0, 1, 2, 3],
            "hosts": ["a", "a", "b", "b"],
            "shards": {"1": [0, 1], "3": [1, 0]},
            "computes": [0, 2],
        },
        "4 members\n|- a: members 0-1\n|  |- member 0: computes\n|  `- member 1: has shards 0-1\n"
        "`- b: members 2-3\n   |- member 2: computes\n   `- member 3: has shards 0-1",
    ),
    "all serve": (
        {"members": [0, 1], "hosts": ["a", "a"], "shards": {"0": [0], "1": [1]}, "computes": [0, 1]},
        "2 members\n`- a: members 0-1\n   |- member 0: has shard 0, computes\n   `- member 1: has shard 1, computes",
    ),
    "many": (
        {"members": list(range(100)), "hosts": [f"n{i}" for i in range(100)]},
        "100 members\n" + "".join(f"|- n{i}: member {i}\n" for i in range(7)) + "`- ... and 93 more",
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_trees(name: str) -> None:
    line, wanted = TREES[name]
    assert "\n".join(drawn(tree(line))) == wanted
