"""Views are claimed once, one after the other."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpcvol.elastic.views import VIEWS_NAME, Views


def test_each_view_is_claimed_once_and_in_order(tmp_path: Path) -> None:
    one, other = Views(tmp_path), Views(tmp_path)
    assert one.newest == 0
    assert not one.claim(2, [0], 0), "nobody was in view 1"
    assert one.claim(1, [0, 1], 0)
    assert not other.claim(1, [2, 3], 0)
    assert other.newest == 1
    assert one.is_newest(1)
    assert other.claim(2, [2, 3], 7)
    assert not one.is_newest(1)
    assert not one.claim(1, [0, 1], 7), "an older view stays claimed"
    assert sorted(path.name for path in (tmp_path / VIEWS_NAME).iterdir()) == ["00000001", "00000002"]


CLAIM = """
import sys
from pathlib import Path
from hpcvol.elastic.views import Views
views = Views(Path(sys.argv[1]))
sys.stdin.readline()
print(sum(views.claim(number, [int(sys.argv[2])], 0) for number in range(1, 51)))
"""


@pytest.mark.parametrize("number", [2, 4])
def test_of_many_that_claim_at_once_one_gets_each(tmp_path: Path, number: int) -> None:
    argv = [sys.executable, "-c", CLAIM, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([*argv, str(index)], text=True, **pipes) for index in range(number)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    claimed = [int(process.communicate()[0]) for process in processes]
    # A view is lost where all have tried it before the one before was there; none is claimed twice.
    assert sum(claimed) == Views(tmp_path).newest
    assert sum(claimed) > 0
    assert len(list((tmp_path / VIEWS_NAME).iterdir())) == sum(claimed)
