"""Fixtures that start what a test needs of a cluster, and take it away again. Only in tests of one process."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest
from lab_needs import hosts_are_needed
from virtual_hosts import VirtualHosts, virtual_hosts


class MakeHosts(Protocol):
    def __call__(
        self, number: int, *, rate: float = ..., delay: float = ..., private: object = ...
    ) -> VirtualHosts: ...


@pytest.fixture
def make_hosts() -> Iterator[MakeHosts]:
    """`virtual_hosts` that last as long as the test; skips it where they cannot be made."""
    hosts_are_needed()
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(virtual_hosts(*args, **kwargs))
