"""The example gpt: the model looks back only, its yardsticks are right, and its report reads a run."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from launched import RunProgram

from hpcvol.examples import gpt
from hpcvol.train.config import load_config

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def model() -> Iterator[gpt.GPT]:
    """A tiny model; one thread, since several of them wait for each other longer than they compute."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield gpt.build(width=16, num_layers=2, num_heads=2, context=12)
    torch.set_num_threads(num_threads)


def test_a_prediction_depends_on_all_bytes_before_it_and_none_after(model: gpt.GPT) -> None:
    tokens = torch.randint(256, (1, 12))
    before = model.logits(tokens)
    for position in range(12):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % 256
        differs = (model.logits(changed) != before).any(dim=2)[0]
        assert not differs[:position].any()
        assert differs[position:].all()


@pytest.mark.parametrize("length", [1, 2, 3, 12])
def test_short_sequences(model: gpt.GPT, length: int) -> None:
    assert model.logits(torch.randint(256, (2, length))).shape == (2, length, 256)


def test_the_loss_is_a_mean_over_the_predicted_bytes(model: gpt.GPT) -> None:
    output = model(torch.randint(256, (3, 9), dtype=torch.uint8))
    assert output["weight"] == 3 * 8
    assert output["loss"].item() == pytest.approx(math.log(256), rel=0.05)  # nothing learnt yet


def test_it_learns_a_pattern(model: gpt.GPT) -> None:
    tokens = torch.tensor([[*b"abcabcabcabca"]] * 4, dtype=torch.uint8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(tokens)["loss"].backward()
        optimizer.step()
    assert model.write(b"abc", 9) == b"abcabcabcabc"


def test_writing_repeats_with_the_seed(model: gpt.GPT) -> None:
    assert model.write(b"x", 20, seed=1) == model.write(b"x", 20, seed=1) != model.write(b"x", 20, seed=2)


def test_yardsticks() -> None:
    assert gpt.unigram_bits(np.arange(256, dtype=np.uint8)) == pytest.approx(8)
    assert gpt.unigram_bits(np.zeros(9, np.uint8)) == 0
    assert gpt.gzip_bits(np.zeros(10_000, np.uint8)) < 0.1
    noise = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
    assert gpt.gzip_bits(noise) == pytest.approx(8, rel=0.02)


def test_the_standard_library_is_many_sources_and_no_tests() -> None:
    files = gpt.standard_library()
    assert files == sorted(files)
    assert len(files) > 300
    assert any(file.name == "argparse.py" for file in files)
    assert not any({"site-packages", "test"} & set(file.parts) for file in files)


def test_sequences_are_one_byte_longer_than_the_context() -> None:
    config = load_config(EXAMPLES / "gpt.toml")
    assert config.data.source is not None
    assert config.data.source.options["sequence_length"] == config.model.args["context"] + 1
    assert set(config.model.args) == {"width", "num_layers", "num_heads", "context", "num_past"}


@pytest.mark.limit_seconds(240)
@pytest.mark.any_mpi
def test_train_and_report(run_program: RunProgram, tmp_path: Path) -> None:
    """`make train`, in small."""
    hpcvol = [sys.executable, "-m", "hpcvol.cli"]
    assert run_program([*hpcvol, "new", str(tmp_path / "demo")]).returncode == 0
    job, run_dir = tmp_path / "demo" / "job.toml", tmp_path / "demo" / "runs" / "job"
    (tmp_path / "text.txt").write_text("".join(f"{i} times {i} is {i * i}\n" for i in range(3000)))
    small = [
        "train.steps=2",
        "model.args.num_layers=1",
        "model.args.width=32",
        f"data.source.paths=['{tmp_path}/text.txt']",
    ]
    done = run_program([*hpcvol, "train", str(job), "-n", "2", *(f"--set={key}" for key in small)], seconds=120)
    assert done.returncode == 0, done.stderr
    report = run_program([sys.executable, str(tmp_path / "demo" / "gpt.py"), str(run_dir)], seconds=120)
    assert report.returncode == 0, report.stderr
    for words in ("entropy of its single bytes", "gzip -9", "this model, after 2 steps", "it writes:\ndef "):
        assert words in report.stdout
