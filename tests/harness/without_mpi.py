"""Tests that MPI has no part in: marked `without_mpi`, and kept from it, so that one run of them speaks for every MPI.

What they start finds no MPI to load, and they cannot take ranks. `make test` runs them under the first MPI only, and so
those that use an MPI, but would say the same of any: `any_mpi`.
"""

from collections.abc import Iterator

import pytest

MARK = "without_mpi"
ANY = "any_mpi"
TAKE_RANKS = {"group", "run_ranks", "make_hosts"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}: MPI has no part in it, and cannot be loaded")
    config.addinivalue_line("markers", f"{ANY}: which MPI it is makes no difference: one run is enough")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a mark on a test that takes ranks."""
    for item in items:
        taken = TAKE_RANKS & set(getattr(item, "fixturenames", ()))
        if taken and item.get_closest_marker(MARK):
            raise pytest.UsageError(f"{item.nodeid} is marked {MARK} and takes ranks: {', '.join(sorted(taken))}")


@pytest.fixture(autouse=True)
def _no_mpi_to_load(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker(MARK):
            patch.setenv("MPI4PY_LIBMPI", "/nowhere/libmpi.so")
        yield
