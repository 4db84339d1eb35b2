from pathlib import Path

import pytest

from hpcvol.callables import load_callable
from hpcvol.errors import ConfigError


def test_file_relative_to_base(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def build(): return 3\n")
    assert load_callable("model.py:build", tmp_path)() == 3


def test_a_file_is_loaded_once_and_two_of_the_same_name_are_two(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(f"def build(): return {name!r}\ndef other(): return build\n")
    build = load_callable("a/model.py:build", tmp_path)
    assert load_callable("b/model.py:build", tmp_path)() == "b"
    assert load_callable("a/model.py:other", tmp_path)() is build


def test_a_file_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_model.py").write_text("VALUE = 5\n")
    (tmp_path / "model.py").write_text("import neighbour_of_model\ndef build(): return neighbour_of_model.VALUE\n")
    assert load_callable("model.py:build", tmp_path)() == 5


def test_module(tmp_path: Path) -> None:
    assert load_callable("os.path:basename", tmp_path)("a/b") == "b"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("modle.py:build", ["there is no file", "modle.py", "Did you mean model.py?"]),
        ("model.py:biuld", ["there is no function biuld", "build, other", "Did you mean build?"]),
        ("model.py:SIZE", ["SIZE", "is a int", "expected a function"]),
        ("model.py", ["names no function", "file.py:function"]),
        ("model.py:", ["names no function"]),
        ("raises.py:build", ["raises.py failed at line 2", "ZeroDivisionError"]),
        ("broken.py:build", ["broken.py", "line 3", "SyntaxError"]),
        ("no_such_package.module:build", ["there is no module no_such_package", "import path"]),
        ("os.path:basenam", ["there is no function basenam in os.path", "Did you mean basename?"]),
    ],
)
def test_errors_say_what_to_do(tmp_path: Path, spec: str, words: list[str]) -> None:
    (tmp_path / "model.py").write_text("SIZE = 3\ndef build(): pass\ndef other(): pass\ndef _hidden(): pass\n")
    (tmp_path / "raises.py").write_text("x = 1\nx / 0\n")
    (tmp_path / "broken.py").write_text("x = 1\n\ndef build(:\n")
    with pytest.raises(ConfigError) as caught:
        load_callable(spec, tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_raised_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise OSError('not yet')\n")
    with pytest.raises(ConfigError, match="not yet"):
        load_callable("model.py:build", tmp_path)
    (tmp_path / "model.py").write_text("def build(): return 'now, with another size of file'\n")
    assert load_callable("model.py:build", tmp_path)().startswith("now")
