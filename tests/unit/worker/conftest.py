"""What tests of the worker's services to guests share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with two machines; not tmp_path, whose length would move the sockets out of the home."""
    with tempfile.TemporaryDirectory(prefix="ty-") as directory:
        for machine in ("vm-00000000000000aa", "vm-00000000000000bb"):
            record = Path(directory) / "machines" / machine / "machine.json"
            record.parent.mkdir(parents=True)
            record.write_text("{}")
        yield Path(directory)
