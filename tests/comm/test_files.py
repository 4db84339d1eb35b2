"""Files passed between ranks: whole, in pieces, and one error for all where one cannot."""

import random
from pathlib import Path

import pytest

from hpcvol.comm import Group, files
from hpcvol.comm.files import pass_file
from hpcvol.durable import create_aside
from hpcvol.errors import MemberError


@pytest.mark.parametrize("nbytes", [0, 1, 99, 100, 101, 300, 1000])
def test_content_arrives_where_it_is_wanted(
    group: Group, tmp_path: Path, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIECE_NBYTES", 10)
    monkeypatch.setattr(files, "PORTION_NBYTES", 300)
    monkeypatch.setattr(files, "SYNC_NBYTES", 50)
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
    assert not list(tmp_path.iterdir())


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
@pytest.mark.parametrize("nbytes", [100, 100_000])
def test_a_disk_that_is_full(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    (tmp_path / "source").write_bytes(bytes(nbytes))
    target = tmp_path / "target"
    if group.rank == 1:
        (tmp_path / ".full").symlink_to("/dev/full")
        monkeypatch.setattr(files, "create_aside", lambda _: tmp_path / ".full")
    with pytest.raises(MemberError, match=r"member 1 (.|\n)*No space left") as caught:
        pass_file(group, 0, tmp_path / "source", target)
    assert caught.value.everywhere
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_ranks_that_name_the_same_file_do_not_write_into_each_other(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(group.broadcast_object(str(tmp_path), 0))
    asides: list[Path] = []

    def create(path: Path) -> Path:
        asides.append(create_aside(path))
        return asides[-1]

    monkeypatch.setattr(files, "create_aside", create)
    source = folder / "source"
    if group.rank == 0:
        source.write_bytes(b"content")
    group.barrier()
    pass_file(group, 0, source, folder / "target")
    group.barrier()
    assert (folder / "target").read_bytes() == b"content"
    assert len(set(group.gather_objects(asides[0].name))) == group.size
    assert {path.name for path in folder.iterdir()} == {"source", "target"}
    group.barrier()
