"""The files of an input, and how to tell that they are still the same."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from hpcvol.errors import DataError


def find_files(paths: Sequence[str], suffixes: Sequence[str], expected: str) -> list[Path]:
    """Return the files at `paths`: those named, and of folders those that end in one of `suffixes`, at any depth.

    Args:
        paths: files and folders.
        suffixes: such as ".parquet", in lower case.
        expected: what they should be, for the error.

    Raises:
        DataError: there is nothing at one of the paths.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and is_visible(file.relative_to(path)))
            chosen = [file for file in inside if file.name.lower().endswith(tuple(suffixes))]
            if not chosen:
                raise DataError(f"There are no files {', '.join(f'*{end}' for end in suffixes)} in {path}.")
            found += chosen
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"There is no file {path}; expected {expected}.")
    return found


def is_visible(path: Path) -> bool:
    """Return whether no part of a relative path begins with a dot."""
    return not any(part.startswith(".") for part in path.parts)


def unused_name(name: str, used: Container[str]) -> str:
    """Return `name`, with as many primes as it takes to differ from the `used`."""
    while name in used:
        name += "'"
    return name


def signature_of(files: Mapping[str, Path] | Sequence[Path]) -> str:
    """Return names, sizes and times of files; see `Source.signature`."""
    named = files if isinstance(files, Mapping) else {f"{i} {path.name}": path for i, path in enumerate(files)}
    stats = {name: path.stat() for name, path in named.items()}
    return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()])
