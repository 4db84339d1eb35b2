"""Files passed between ranks: whole, in pieces, and one error for all where one cannot."""

import random
from pathlib import Path

import pytest

from hpcvol.comm import Group, files
from hpcvol.comm.files import pass_file
from hpcvol.errors import MemberError


@pytest.mark.parametrize("nbytes", [0, 1, 99, 100, 101, 1000])
def test_content_arrives_where_it_is_wanted(
    group: Group, tmp_path: Path, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIECE_NBYTES", 100)
    root = group.size - 1
    content = random.Random(nbytes).randbytes(nbytes)
    source, target = tmp_path / "source", tmp_path / "target"
    if group.rank == root:
        source.write_bytes(content)
    pass_file(group, root, source, target if group.rank % 2 == 0 else None)
    if group.rank % 2 == 0:
        assert target.read_bytes() == content
    names = {path.name for path in tmp_path.iterdir()}
    assert names == ({"source"} if group.rank == root else set()) | ({"target"} if group.rank % 2 == 0 else set())


def test_a_file_that_is_not_there(group: Group, tmp_path: Path) -> None:
    with pytest.raises(MemberError, match=r"passing nothing from member 0 (.|\n)*No such file") as caught:
        pass_file(group, 0, tmp_path / "nothing", tmp_path / "target")
    assert caught.value.everywhere
    assert not (tmp_path / "target").exists()


def test_a_file_that_becomes_shorter(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE_NBYTES", 1 << 18)
    source = tmp_path / "source"
    source.write_bytes(bytes(1 << 20))  # more than Python reads ahead
    real, reads = files._read_exactly, []

    def shorter(reader: object, part: files.Vector) -> None:
        reads.append(part.size)
        if len(reads) == 3:
            source.write_bytes(bytes(15))
        real(reader, part)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "_read_exactly", shorter)
    with pytest.raises(MemberError, match="became shorter while it was read") as caught:
        pass_file(group, 0, source, tmp_path / "target")
    assert caught.value.everywhere
    assert len(reads) == (3 if group.rank == 0 else 0)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize("group", [2, 3], indirect=True, ids=["2ranks", "3ranks"])
def test_a_disk_that_is_full(group: Group, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(100_000))
    target = tmp_path / "target"
    if group.rank == 1:
        (tmp_path / ".target.passing").symlink_to("/dev/full")
    with pytest.raises(MemberError, match=r"member 1 (.|\n)*No space left") as caught:
        pass_file(group, 0, tmp_path / "source", target)
    assert caught.value.everywhere
    assert {path.name for path in tmp_path.iterdir()} == {"source"}
