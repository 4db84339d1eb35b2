"""What decides a gradient's bits, in words; and the check that all members run the same code."""

from pathlib import Path

import pytest
import torch
from training import make_run, numbers

import hpcvol.torch.numerics as numerics
from hpcvol.comm import Group
from hpcvol.errors import ConfigError
from hpcvol.torch.numerics import agree_on_code, describe_differences, main_files, numerics_class
from hpcvol.torch.settings import Settings


def test_the_class_tells_threads_and_instruction_set() -> None:
    found = numerics_class()
    assert found["threads"] == str(torch.get_num_threads())
    assert found["instruction set"] == torch.backends.cpu.get_cpu_capability()
    assert found["torch"] == torch.__version__


@pytest.mark.parametrize("key", sorted(numerics_class()))
def test_every_difference_comes_with_a_remedy(key: str) -> None:
    one = numerics_class()
    said = describe_differences(one, {**one, key: "another"})
    assert f"{key}: {one[key]} and another" in said
    assert 'or set train.sum = "float"' in said


def test_no_difference_says_so() -> None:
    assert "Nothing known" in describe_differences(numerics_class(), numerics_class())


def test_the_same_code_is_agreed_on(group: Group, shared_path: Path) -> None:
    if group.rank == 0:
        (shared_path / "model.py").write_text("one = 1\n")
    group.barrier()
    agree_on_code(group, [shared_path / "model.py"])


def test_another_file_on_one_member_is_refused_on_all(group: Group, tmp_path: Path) -> None:
    if group.size == 1:
        pytest.skip("takes two members")
    path = tmp_path / "model.py"
    path.write_text(f"one = {int(group.rank == group.size - 1)}\n")
    with pytest.raises(ConfigError, match=r"the file model\.py is \w+ on member 0 .* and \w+ on") as caught:
        agree_on_code(group, [path])
    assert caught.value.everywhere
    assert group.name_of(group.size - 1) in str(caught.value)


def test_a_file_that_one_member_does_not_have_is_refused(group: Group, tmp_path: Path) -> None:
    if group.size == 1:
        pytest.skip("takes two members")
    path = tmp_path / "extra.py"
    path.write_text("")
    with pytest.raises(ConfigError, match="absent"):
        agree_on_code(group, [path] if group.rank == 1 else [])


def test_another_library_on_one_member_is_refused(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    if group.size == 1:
        pytest.skip("takes two members")
    if group.rank == 1:
        monkeypatch.setattr(numerics, "version", lambda _: "0.0.1")
    with pytest.raises(ConfigError, match=r"hpcvol is .* and 0\.0\.1"):
        agree_on_code(group, [])


def test_the_users_own_files_are_compared() -> None:
    class Mine(torch.nn.Linear):
        pass

    assert not any("site-packages" in path.parts for path in main_files(torch.nn.Linear(1, 1)))
    assert Path(__file__).resolve() in main_files(Mine(1, 1))


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ("settings", r"the run is Settings\(.*clip_norm=None.* and Settings\(.*clip_norm=2\.0"),
        ("algorithm", r"the run is Settings\(.*algorithm='auto'.* and Settings\(.*algorithm='staged'"),
        ("learning rate", r"the optimizer is SGD .*0\.1.* on member 0 .* and SGD .*0\.2"),
        (
            "shape",
            r"parameter weight is \[1, 6\] torch\.float32 on member 0 .* and \[1, 7\] torch\.float32 on member 2",
        ),
    ],
)
def test_members_that_set_up_different_runs_are_refused(group: Group, differs: str, said: str) -> None:
    odd = group.rank == 2
    model = torch.nn.Linear(7 if odd and differs == "shape" else 6, 1)
    settings = Settings(
        8,
        2,
        clip_norm=2.0 if odd and differs == "settings" else None,
        algorithm="staged" if odd and differs == "algorithm" else "auto",
    )
    rate = 0.2 if odd and differs == "learning rate" else 0.1
    with pytest.raises(ConfigError, match=said) as caught:
        make_run(group, model, numbers(16), settings, lambda parameters: torch.optim.SGD(parameters, rate))
    assert caught.value.everywhere
