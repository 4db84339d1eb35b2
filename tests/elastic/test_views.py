"""Views are claimed once, one after the other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcvol.elastic.views import VIEWS_NAME, Views


def test_each_view_is_claimed_once_and_in_order(tmp_path: Path) -> None:
    one, other = Views(tmp_path), Views(tmp_path)
    assert one.newest == 0
    assert one.claim([0], 0) is None, "nobody has begun"
    assert one.begin([0, 1, 2, 3]) == 1
    assert one.is_newest(1)
    assert other.claim([2, 3], 1) == 2
    assert not one.is_newest(1)
    assert one.claim([0, 1], 1) is None, "they were left behind"
    assert other.members_of(2) == (2, 3)
    assert other.claim([2, 3, 4], 2) is None, "4 is a stranger"
    assert other.claim([0, 2, 4], 2, joining={4}) is None, "0 was left behind"
    assert other.claim([2, 3, 4], 2, joining={4}) == 3
    assert other.claim([3, 4], 3) == 4
    assert sorted(path.name for path in (tmp_path / VIEWS_NAME).iterdir()) == [
        f"{number:08}" for number in (1, 2, 3, 4)
    ]


def test_a_listing_that_is_late_refuses_nobody_and_lets_nobody_claim_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over NFS: the folder's names are those of a while ago."""
    views = Views(tmp_path)
    assert views.begin([0, 1, 2]) == 1
    assert views.claim([0, 1], 1) == 2
    monkeypatch.setattr(os, "listdir", lambda _: ["00000001"])
    assert views.claim([0, 1, 2], 1) is None, "2 is there already"
    assert views.claim([0], 2) == 3


CLAIM = """
import sys
from pathlib import Path
from hpcvol.elastic.views import Views
views = Views(Path(sys.argv[1]))
sys.stdin.readline()
print(sum(views.claim([0], 1) is not None for _ in range(50)))
"""


@pytest.mark.parametrize("number", [2, 4])
def test_of_many_that_claim_at_once_one_gets_each(tmp_path: Path, number: int) -> None:
    assert Views(tmp_path).begin([0]) == 1
    argv = [sys.executable, "-c", CLAIM, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([*argv, str(index)], text=True, **pipes) for index in range(number)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    claimed = [int(process.communicate()[0]) for process in processes]
    # Who comes too late for one goes on to the next; none is claimed twice.
    assert sum(claimed) == Views(tmp_path).newest - 1
    assert sum(claimed) > 0
    assert len(list((tmp_path / VIEWS_NAME).iterdir())) == sum(claimed) + 1
