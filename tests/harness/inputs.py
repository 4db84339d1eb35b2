"""Small inputs of every kind that `hpcvol data build` reads, by the names that docs/data.md uses."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from PIL import Image

NUM_ROWS = 450


def make_inputs(folder: Path) -> None:
    """Write all of them into `folder`."""
    make_text(folder / "src")
    make_tokens(folder / "train.bin", 9000)
    make_tokens(folder / "val.bin", 1200)
    make_images(folder / "photos")
    make_hdf5(folder / "rows.h5")
    make_parquet(folder / "table.parquet")
    make_tar(folder / "samples.tar")
    rows = columns()
    np.savez(folder / "arrays.npz", **rows)
    np.savetxt(folder / "table.csv", np.c_[rows["x"], rows["y"]], delimiter=",", header="a,b,c,kind", comments="")
    (folder / "samples.py").write_text(
        "import numpy as np\n\n\ndef squares():\n    for i in range(300):\n"
        "        yield {'x': np.full(4, i, np.float32), 'y': i * i}\n"
    )


def columns() -> dict[str, NDArray[Any]]:
    """Rows that tell which they are: x float32[450, 3], y int64[450]."""
    y = np.arange(NUM_ROWS)
    return {"x": np.stack([y, y + 0.5, -y], axis=1).astype(np.float32), "y": y}


def make_text(folder: Path) -> None:
    """Write text files whose name a hash sends to each split."""
    folder.mkdir(parents=True)
    for i in range(120):
        (folder / f"{i}.txt").write_text(f"This is line number {i} of a small corpus.\n" * 20)


def make_tokens(path: Path, count: int) -> NDArray[np.uint16]:
    """Write `count` tokens below 50257, as nanoGPT does."""
    tokens = np.random.default_rng(count).integers(0, 50257, count, np.uint16)
    tokens.tofile(path)
    return tokens


def make_images(folder: Path, each: int = 30) -> None:
    """Write pictures of two classes, whose mean colour tells which they are."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 100, (40 + i % 7, 50, 3), np.uint8) + np.uint8(150 * number)
            Image.fromarray(pixels).save(folder / name / f"{i}.{'png' if i % 2 else 'jpg'}")


def make_hdf5(path: Path, **settings: Any) -> None:
    """Write `columns`, `y` in a group; `settings` are those of `create_dataset`."""
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=columns()["x"], **settings)
        file.create_dataset("labels/y", data=columns()["y"], **settings)


def make_parquet(path: Path) -> None:
    """Write numbers, lists, strings and pictures in small row groups."""
    rows = columns()
    table = pyarrow.table(
        {
            "y": rows["y"],
            "x": pyarrow.FixedSizeListArray.from_arrays(rows["x"].reshape(-1), 3),
            "text": [f"row {i}" for i in rows["y"]],
            "scores": [np.arange(i % 4, dtype=np.float32) for i in rows["y"]],
            "image": [{"bytes": bytes([i % 256]) * (i % 5), "path": f"{i}.jpg"} for i in rows["y"].tolist()],
            "kind": pyarrow.array([f"kind {i % 3}" for i in rows["y"]]).dictionary_encode(),
        }
    )
    pyarrow.parquet.write_table(table, path, row_group_size=130)


def make_tar(path: Path, first: int = 0, count: int = NUM_ROWS, mode: Any = "w") -> None:
    """Write samples with a picture's bytes, a class, an array, a text and numbers."""
    with tarfile.open(path, mode) as tar:
        for i in range(first, first + count):
            array = io.BytesIO()
            np.save(array, columns()["x"][i % NUM_ROWS])
            add_sample(
                tar,
                f"set/{i:06d}",
                {
                    "jpg" if i % 2 else "png": bytes([i % 251]) * (i % 9),
                    "cls": str(i).encode(),
                    "vector.npy": array.getvalue(),
                    "txt": f"row {i}".encode(),
                    "json": json.dumps([i, 2 * i]).encode(),
                },
            )


def add_sample(tar: tarfile.TarFile, key: str, contents: Mapping[str, bytes]) -> None:
    """Add the files of one sample."""
    for extension, data in contents.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
