"""Training on several datasets with weights, and on pictures that the transforms decode."""

import shutil
from pathlib import Path

import inputs
import pytest
from digits_project import Project, first_ranks, what_decides

from hpcvol.comm import Group
from hpcvol.data import build_dataset
from hpcvol.errors import ConfigError, HpcvolError


def mixture(first: Path, second: Path, weight: float = 0.5) -> str:
    return f'data.path={{ "{first}" = 1, "{second}" = {weight} }}'


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_a_mixture_gives_the_same_bits_at_one_rank_and_at_two(
    group: Group, shared_project: Project, request: pytest.FixtureRequest
) -> None:
    project, other = shared_project, shared_project.folder / "other"
    if group.rank == 0:
        shutil.copytree(request.getfixturevalue("digits_data"), other)
    data = project.config().data.path
    assert isinstance(data, str)
    path = mixture(Path(data), other)
    overrides = (path, "train.epochs=2", "train.batch_size=512", "train.validate_every_steps=4")
    assert project.train("two", *overrides, group=group)
    with first_ranks(group, 1) as one:
        if one is not None:
            assert project.train("one", *overrides, group=one)
    assert what_decides(project.summary("one")) == what_decides(project.summary("two"))
    # 1258 samples and half of 1258: 4 steps of 512 an epoch.
    assert project.summary("one")["steps"] == 8


def test_a_mixture_is_another_dataset_than_its_parts(project: Project) -> None:
    other = project.folder / "other"
    data = project.config().data.path
    assert isinstance(data, str)
    shutil.copytree(data, other)
    assert project.train("run", mixture(Path(data), other))
    with pytest.raises(HpcvolError, match=r"data\.path"):
        project.train("run", mixture(Path(data), other, 0.25))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('data.path={ "a" = 0 }', "above 0"),
        ("data.path={}", "data.path"),
        ('data.path={ "a" = 1, "a/" = 2 }', "names the same folder twice"),
        ('data.path={ "a.py:f" = 1 }', "is a function: build a dataset"),
    ],
)
def test_wrong_mixtures_are_refused(project: Project, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        project.config(override)


def test_pictures_are_trained_on(project: Project) -> None:
    inputs.make_images(project.folder / "photos")
    build_dataset("images", [project.folder / "photos"], project.folder / "shards", split="train=.8,val=.2")
    project.write(
        "pictures.py",
        "from torch import nn\nfrom torch.nn import functional\n"
        "from hpcvol.data.images import CenterCrop, RandomCrop\n"
        "augment, decode = RandomCrop(8), CenterCrop(8)\n"
        "class Classifier(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(192, 2)\n"
        "    def forward(self, image, label):\n"
        "        return functional.cross_entropy(self.linear(image.flatten(1) / 255), label)\n",
    )
    overrides = ["model.build=pictures.py:Classifier", "model.args={}", "data.path=shards", "train.batch_size=16"]
    transforms = ["data.transform=pictures.py:augment", "data.eval_transform=pictures.py:decode"]
    assert project.train("run", *overrides, *transforms, "train.steps=30")
    assert project.summary("run")["val_loss"] < 0.5
