"""Runs whose parameters are with servers: the run directory is that of an all-reduce, and either goes on from it."""

from typing import Any

import pytest
from digits_project import Project, first_ranks, what_decides

from hpcvol.comm import Group
from hpcvol.errors import ConfigError

SERVED = ("strategy.kind=parameter_server", "train.validate_every_steps=2")
PLAIN = ("train.validate_every_steps=2",)


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_a_checkpoint_is_that_of_any_strategy(group: Group, shared_project: Project) -> None:
    project = shared_project
    steps: Any = ("checkpoint.every_steps=2",)
    assert project.train("whole", *PLAIN, *steps, group=group)
    assert project.train("served", *SERVED, *steps, "strategy.servers=1", group=group)
    wanted = what_decides(project.summary("whole"))
    assert what_decides(project.summary("served")) == wanted
    optimizers = [project.checkpoint(run, 4) / "optimizer.pt" for run in ("whole", "served")]
    assert optimizers[0].read_bytes() == optimizers[1].read_bytes()
    # Each goes on from the other's, at another count.
    with first_ranks(group, 2) as two:
        if two is not None:
            assert project.train("mixed", *SERVED, "train.steps=3", "strategy.replicas=1", group=two)
    assert project.train("mixed", *PLAIN, "train.steps=4", group=group)
    assert project.train("mixed", *SERVED, "strategy.servers=2", group=group)
    mixed = project.summary("mixed")
    assert mixed["weights_sha256"] == wanted["weights_sha256"]


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (("strategy.servers=2",), "are for strategy.kind ="),
        ((*SERVED, "strategy.servers=0"), "strategy.servers"),
        ((*SERVED, "strategy.replicas=-1"), "strategy.replicas"),
        ((*SERVED, "elastic.verify_share=0.5"), "does not go together with elastic.verify_share"),
        ((*SERVED, "train.sum=float", "strategy.codec=auto"), "encoded by itself"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    project: Project, overrides: tuple[str, ...], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        project.config(*overrides)
