"""Who writes the run logs of a bucket for this whole process: every event of the process goes through its open writers.

An event that went past the open writer of its run would take an id that the writer has told readers already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from storage.bucket import ObjectStore
from storage.layout import Place
from storage.segments import Drafts


class Logs(Protocol):
    """The logs that this process writes."""

    def append(self, place: Place, drafts: Drafts) -> None:
        """Store what was made elsewhere, behind all that was told. Raises Conflict when closed, BucketUnavailable."""


_attached: dict[ObjectStore, Logs] = {}


@contextmanager
def attached_to(store: ObjectStore, logs: Logs) -> Iterator[None]:
    """``logs`` has the logs of this bucket while the block runs."""
    _attached[store] = logs
    try:
        yield
    finally:
        if _attached.get(store) is logs:
            del _attached[store]


def attached(store: ObjectStore) -> Logs | None:
    """Who has the logs of this bucket; None in a process that serves none."""
    return _attached.get(store)
