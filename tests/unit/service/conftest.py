"""What tests of a host's service share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty home; not tmp_path, whose length would move the sockets out of the home."""
    with tempfile.TemporaryDirectory(prefix="ty-") as directory:
        yield Path(directory)
