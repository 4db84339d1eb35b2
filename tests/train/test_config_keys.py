"""Every key of the configuration is read by something, and the written reference tells of all of them."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from hpcvol.train import config

ROOT = Path(__file__).parents[2]
SECTIONS: dict[str, type[BaseModel]] = {
    "model": config.ModelConfig,
    "data": config.DataConfig,
    "source": config.SourceConfig,
    "optimizer": config.OptimizerConfig,
    "train": config.TrainConfig,
    "strategy": config.StrategyConfig,
    "checkpoint": config.CheckpointConfig,
    "comm": config.CommConfig,
}


def keys_read(source: str) -> Iterator[tuple[str, str]]:
    """Yield (section, key) for each `section.key`, and each `x.key` where x is annotated with the section's class."""
    tree = ast.parse(source)
    sections = {model.__name__: name for name, model in SECTIONS.items()}
    annotated = {
        argument.arg: sections[ast.unparse(argument.annotation)]
        for argument in ast.walk(tree)
        if isinstance(argument, ast.arg) and argument.annotation and ast.unparse(argument.annotation) in sections
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        match node.value:
            case ast.Attribute(attr=receiver) | ast.Name(id=receiver):
                yield annotated.get(receiver, receiver), node.attr


def keys_passed_on(source: str) -> Iterator[tuple[str, str]]:
    """Yield (section, key) for each `self.key` in a method of a section that makes another value of it: `as_…`."""
    sections = {model.__name__: name for name, model in SECTIONS.items()}
    for section in ast.walk(ast.parse(source)):
        if isinstance(section, ast.ClassDef) and section.name in sections:
            for method in section.body:
                if isinstance(method, ast.FunctionDef) and method.name.startswith("as_"):
                    yield from (
                        (sections[section.name], key)
                        for receiver, key in keys_read(ast.unparse(method))
                        if receiver == "self"
                    )


def test_the_search_sees_reads_and_nothing_else() -> None:
    source = (
        "def f(o: OptimizerConfig):\n    self.config.train.seed; train.steps; o.name; other.batch_size; 'train.sum'"
    )
    known = {(section, key) for section, model in SECTIONS.items() for key in model.model_fields}
    assert set(keys_read(source)) & known == {("train", "seed"), ("train", "steps"), ("optimizer", "name")}
    source = "class TrainConfig:\n    def as_x(self): return self.seed\n    def check(self): return self.steps"
    assert set(keys_passed_on(source)) == {("train", "seed")}


def test_every_key_is_read() -> None:
    files = [file for file in (ROOT / "hpcvol").rglob("*.py") if file.name != "config.py"]
    read = {pair for file in files for pair in keys_read(file.read_text(encoding="utf-8"))}
    read |= set(keys_passed_on(Path(config.__file__).read_text(encoding="utf-8")))
    unread = [
        f"{name}.{key}" for name, model in SECTIONS.items() for key in model.model_fields if (name, key) not in read
    ]
    assert unread == []


@pytest.fixture
def write_config() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_config", ROOT / "docs" / "write_config.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(write_config: ModuleType) -> None:
    written = write_config.PAGE.read_text(encoding="utf-8")
    assert written == write_config.page(), "docs/config.md is stale: run `make docs`"


def test_the_reference_tells_of_every_key(write_config: ModuleType) -> None:
    page = write_config.page()
    for model in SECTIONS.values():
        for key, field in model.model_fields.items():
            assert f"| `{key}` |" in page
            assert field.description
            assert field.description in page
