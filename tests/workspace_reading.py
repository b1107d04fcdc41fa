"""A workspace image read whole into a directory, in one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from machines.disks.workspace import Extraction, Limits, opened


def extract_workspace(
    image: Path,
    into: Path,
    *,
    dirty: bool,
    skip: Callable[[str], bool] = lambda _: False,
    limits: Limits | None = None,
) -> Extraction:
    with opened(image, into.parent, dirty=dirty, limits=limits) as disk:
        disk.list_entries(skip=skip)
        disk.read(disk.entries, into)
        return disk.result
