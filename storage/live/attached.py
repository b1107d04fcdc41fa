"""Who writes the run logs of a bucket for this whole process: every event of the process goes through its open writers.

An event that went past the open writer of its run would take an id that the writer has told readers already.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

from storage.bucket import ObjectStore
from storage.layout import Place
from storage.segments import Draft


class Logs(Protocol):
    """The logs that this process writes."""

    def append(self, place: Place, draft: Draft) -> None:
        """Store one event, behind all that this host has told. Raises Conflict when closed, BucketUnavailable."""


_attached: WeakKeyDictionary[ObjectStore, Logs] = WeakKeyDictionary()


def attach(store: ObjectStore, logs: Logs) -> None:
    """From now on ``logs`` has the logs of this bucket."""
    _attached[store] = logs


def attached(store: ObjectStore) -> Logs | None:
    """Who has the logs of this bucket; None in a process that serves none."""
    return _attached.get(store)
