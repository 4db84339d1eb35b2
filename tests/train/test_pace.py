"""Who computes how fast: sums over members, and that a slow one is named."""

import json
from collections.abc import Sequence

import pytest
from digits_project import Project
from launched import RunRanks

from hpcvol.torch.step import Share
from hpcvol.train.pace import Pace


def shares(*seconds: float, samples: Sequence[int] = (4, 4, 4, 4)) -> list[Share]:
    return [Share(member, samples[member], one) for member, one in enumerate(seconds)]


def test_a_stretch_is_summed_up() -> None:
    pace = Pace()
    for seconds in ((1.0, 2.0, 3.0), (1.0, 4.0, 2.0), (1.0, 2.0, 6.0)):
        pace.count(shares(*seconds))
    found = pace.take()
    assert found["median_seconds"] == pytest.approx(2.0)
    assert found["slowest_seconds"] == pytest.approx(13 / 3)
    assert found["slowest"] == 2
    assert found["waiting"] == pytest.approx(1 - 22 / 39)
    pace.count(shares(1.0, 1.0))
    assert pace.take() == {"median_seconds": 1.0, "slowest_seconds": 1.0, "slowest": 0, "waiting": 0.0}


def test_a_member_is_slow_by_its_seconds_a_sample() -> None:
    pace = Pace()
    pace.count(shares(4.0, 4.0, 2.1, samples=(8, 8, 4)))  # less to do, and as fast but for a little
    assert pace.slow_member([0, 1, 2, 3]) is None
    pace.count(shares(4.0, 4.0, 8.0, samples=(8, 8, 4)))
    slow = pace.slow_member([0, 1, 2, 3])
    assert slow is not None
    assert slow[0] == 2
    assert slow[1] == pytest.approx((10.1 / 8) / 0.5)


def test_one_member_and_idle_ones_are_not_slow() -> None:
    pace = Pace()
    pace.count(shares(5.0, 0.1, samples=(8, 0)))
    assert pace.slow_member([0, 1, 2, 3]) is None


SLOWED = """
import sys, time
import hpcvol.torch.run
from hpcvol import Trainer, load_config
from hpcvol.comm import start
if start().rank == 1:
    load = hpcvol.torch.run.Run.prepare
    hpcvol.torch.run.Run.prepare = lambda run, span: time.sleep(0.1) or load(run, span)
options = ["train.steps=4", "train.log_every_steps=2", "elastic.dealing=equal"]
Trainer(load_config(sys.argv[1], options), sys.argv[2]).fit()
"""


@pytest.mark.limit_seconds(130)
def test_a_slow_member_shows_in_metrics_and_at_the_end(project: Project, run_ranks: RunRanks) -> None:
    run = project.folder / "slow"
    done = run_ranks(2, ["-c", SLOWED, str(project.job), str(run)], seconds=100)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    members = [line["members"] for line in lines if "members" in line]
    assert len(members) == 2
    for found in members:
        assert found["slowest"] == 1
        assert found["slowest_seconds"] > found["median_seconds"]
        assert 0 < found["waiting"] < 1
    assert "member 1 (" in done.stdout
    assert "times as long for a sample as the median member" in done.stdout
