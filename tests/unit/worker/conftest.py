"""What tests of the worker's services to guests share."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

# What guests reach of a worker.
_SERVICES = ("test_egress", "test_injection", "test_gateway")


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Services run on the worker's own loop too: the guard of loops sees into Python's alone."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.name.startswith(_SERVICES):
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with two machines; not tmp_path, whose length would move the sockets out of the home."""
    with tempfile.TemporaryDirectory(prefix="ty-") as directory:
        for machine in ("vm-00000000000000aa", "vm-00000000000000bb"):
            record = Path(directory) / "machines" / machine / "machine.json"
            record.parent.mkdir(parents=True)
            record.write_text("{}")
        yield Path(directory)
