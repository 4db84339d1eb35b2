"""Configuration: what is read, what is refused and in which words, and that the written form is the same again."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.errors import ConfigError
from hpcvol.train import toml
from hpcvol.train.config import Config, differences, load_config, to_toml

SMALLEST = """\
[model]
build = "model.py:build"

[data]
path = "shards"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str) -> Config:
    return load_config(write(folder, text), overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    assert config.folder == tmp_path
    assert (config.train.steps, config.train.epochs) == (None, 1)
    assert (config.train.batch_size, config.train.unit_size) == (64, 8)
    assert (config.train.sum, config.train.threads, config.comm.algorithm) == ("exact", "auto", "auto")


@pytest.mark.parametrize(("batch_size", "unit_size"), [(1, 1), (7, 1), (8, 1), (9, 2), (64, 8), (65, 9)])
def test_at_most_eight_units_by_default(tmp_path: Path, batch_size: int, unit_size: int) -> None:
    assert load(tmp_path, SMALLEST, f"train.batch_size={batch_size}").train.unit_size == unit_size


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
        [model]
        build = "../model.py:build"
        weights = "start.safetensors"
        [data]
        path = "shards"
        transform = "/elsewhere/augment.py:flip"
        [data.source]
        kind = "text"
        paths = ["texts", "files.py:listing"]
        [train]
        on_metrics = "package.module:log"
        """
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path)
    config = load(Path("project"), text)
    assert config.model.build == f"{tmp_path}/model.py:build"
    assert config.model.weights == f"{tmp_path}/project/start.safetensors"
    assert config.data.path == f"{tmp_path}/project/shards"
    assert config.data.transform == "/elsewhere/augment.py:flip"
    assert config.data.source is not None
    assert config.data.source.paths == [f"{tmp_path}/project/texts", f"{tmp_path}/project/files.py:listing"]
    assert config.train.on_metrics == "package.module:log"


def test_a_module_stays_a_module(tmp_path: Path) -> None:
    text = SMALLEST.replace("model.py:build", "package.module:build")
    assert load(tmp_path, text).model.build == "package.module:build"


def test_overrides(tmp_path: Path) -> None:
    overrides = ["train.steps=3", "optimizer.args.lr=1e-3", "train.sum=float", 'model.args={ width = 4, name = "a=b" }']
    config = load(tmp_path, SMALLEST, *overrides)
    assert config.train.steps == 3
    assert config.train.sum == "float"
    assert config.optimizer.args == {"lr": 1e-3}
    assert config.model.args == {"width": 4, "name": "a=b"}


def test_an_override_of_steps_replaces_epochs_of_the_file(tmp_path: Path) -> None:
    text = SMALLEST + "[train]\nepochs = 4\n"
    assert load(tmp_path, text, "train.steps=3").train.epochs is None
    assert "exclude each other" in refusal(tmp_path, text, "train.steps=3", "train.epochs=4")


def test_an_override_cannot_smuggle_in_keys(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST, "optimizer.name=1\nother = 2")
    assert config.optimizer.name == "1\nother = 2"


@pytest.mark.parametrize("override", ["steps=3", "train.steps", "train..steps=3", ".steps=3", "=3", ""])
def test_an_override_without_section_or_value_is_refused(tmp_path: Path, override: str) -> None:
    assert "section.key=value" in refusal(tmp_path, SMALLEST, override)


@pytest.mark.parametrize("weight", ["inf", "nan", "1e+07", "0", "-1"])
def test_a_weight_that_cannot_be_is_refused(tmp_path: Path, weight: str) -> None:
    message = refusal(tmp_path, SMALLEST, f'data.path={{ "a" = 1, "b" = {weight} }}')
    assert message.startswith("--set data.path")
    assert message.endswith(f"gives 'b' the weight {weight}, expected a number above 0 and at most 1e+06")


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    assert "train.seed is a value" in refusal(tmp_path, SMALLEST + "[train]\nseed = 3\n", "train.seed.deep=1")


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        ("train", "epoch", "Did you mean 'epochs'?"),
        ("train", "batchsize", "Did you mean 'batch_size'?"),
        ("optimizer", "batch_size", "Did you mean train.batch_size?"),
        ("checkpoint", "xyzzy", "There is: every_steps, mtbf_hours, keep, copies"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, section: str, key: str, near: str) -> None:
    message = refusal(tmp_path, f"{SMALLEST}[{section}]\n{key} = 3\n")
    assert message == f"{tmp_path}/job.toml, line 7: unknown key '{key}' in [{section}]. {near}"


def test_an_unknown_section_names_the_nearest(tmp_path: Path) -> None:
    assert refusal(tmp_path, SMALLEST + "[optimiser]\n").endswith(
        "unknown section [optimiser]. Did you mean 'optimizer'?"
    )


def test_an_unknown_key_of_an_override_names_the_override(tmp_path: Path) -> None:
    message = refusal(tmp_path, SMALLEST, "train.stepz=3")
    assert message == "--set train.stepz=3: unknown key 'stepz' in [train]. Did you mean 'steps'?"


@pytest.mark.parametrize(
    ("section", "line", "words"),
    [
        ("train", 'seed = "3"', 'train.seed = "3" (a string), expected an integer'),
        ("train", "seed = true", "train.seed = true (a boolean), expected an integer"),
        ("train", "seed = -1", "train.seed = -1 (an integer), expected greater than or equal to 0"),
        ("train", "steps = 0", "train.steps = 0 (an integer), expected greater than 0"),
        ("train", "batch_size = 1.5", "train.batch_size = 1.5 (a number), expected an integer"),
        ("train", 'sum = "exat"', "train.sum = \"exat\" (a string), expected 'exact' or 'float'"),
        ("train", 'threads = "all"', "train.threads = \"all\" (a string), expected an integer or 'auto'"),
        ("optimizer", "args = 3", "optimizer.args = 3 (an integer), expected a table"),
        ("optimizer", "clip_norm = nan", "optimizer.clip_norm = nan (a number), expected greater than 0"),
    ],
)
def test_a_wrong_value_says_found_and_expected(tmp_path: Path, section: str, line: str, words: str) -> None:
    assert refusal(tmp_path, f"{SMALLEST}[{section}]\n{line}\n") == f"{tmp_path}/job.toml, line 7: {words}"


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST, "optimizer.clip_norm=1").optimizer.clip_norm == 1.0


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "[model]\n[train]\nseed = 1.5\nbatch_size = 0\n[commm]\n").splitlines()
    assert len(lines) == 5
    assert "'build' in [model] is missing" in lines[0]
    assert "[data] is missing" in lines[1]


def test_keys_that_exclude_each_other(tmp_path: Path) -> None:
    both = refusal(tmp_path, SMALLEST + "[train]\nsteps = 3\nepochs = 2\n")
    assert "train.steps = 3 and train.epochs = 2 exclude each other" in both
    source = '[data.source]\nkind = "text"\npaths = ["x"]\n'
    assert "give one of the two" in refusal(tmp_path, SMALLEST.replace("shards", "data.py:digits") + source)


def test_a_unit_is_no_more_than_a_batch(tmp_path: Path) -> None:
    message = refusal(tmp_path, SMALLEST + "[train]\nbatch_size = 8\nunit_size = 9\n")
    assert "train.unit_size = 9 is more than train.batch_size = 8" in message


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file .*none\.toml"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)


def test_no_toml(tmp_path: Path) -> None:
    assert "is not valid TOML" in refusal(tmp_path, "[model\n")


def test_nothing_changes_after_loading(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        config.train.seed = 3  # type: ignore[misc]


def test_written_and_read_again_nothing_differs(tmp_path: Path) -> None:
    source = (
        '[data.source]\nkind = "csv"\npaths = ["a b.csv"]\noptions = { "odd key" = [1, 2.5, true, "\\u00e9\\n"] }\n'
    )
    config = load(tmp_path, SMALLEST + source, "train.steps=7", "optimizer.args={ lr = 1e-5 }", "model.args.x=inf")
    (tmp_path / "runs" / "job").mkdir(parents=True)
    written = tmp_path / "runs" / "job" / "config.toml"
    written.write_text(to_toml(config, written.parent), encoding="utf-8")
    again = load_config(written)
    assert differences(config, again) == []
    assert again.model_dump() == config.model_dump()
    assert str(tmp_path) not in written.read_text(encoding="utf-8")  # the whole project can be moved
    elsewhere = write(tmp_path / "runs", to_toml(config))
    assert differences(config, load_config(elsewhere)) == []


def test_differences_name_key_and_both_values(tmp_path: Path) -> None:
    old = load(tmp_path, SMALLEST, "model.args.width=3")
    new = load(tmp_path, SMALLEST, "train.steps=7", "train.sum=float")
    assert differences(old, new) == [
        "model.args.width: 3 -> none",
        "train.steps: none -> 7",
        "train.epochs: 1 -> none",
        'train.sum: "exact" -> "float"',
    ]


TEXTS = st.text(max_size=6)
SCALARS = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), TEXTS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=4
)


@given(st.dictionaries(TEXTS, st.dictionaries(TEXTS, VALUES, max_size=3), max_size=2))
def test_rendered_toml_reads_as_it_was(table: dict[str, dict[str, object]]) -> None:
    assert toml.parse(toml.render(table), Path("any")) == table


def test_loading_a_configuration_needs_neither_torch_nor_mpi() -> None:
    code = "import sys, hpcvol.train.config; print({'torch', 'mpi4py', 'numba'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded == "set()\n"
