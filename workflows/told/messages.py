"""The status of a local run: argument of its workflow, answer of its query, memo, and final record."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field

from workflows.messages import Message, Name
from workflows.told.record import Told
from workflows.told.states import LocalState

#: Says of a final record in the bucket what it is of.
RECORD_KIND = "local_run"


class LocalStatus(Message):
    """A local run as it stands. ``parent`` is the parent task that it is a run of.

    ``changed_at`` is the time of the last change of whatever kind, and later with each; ``changes`` counts them.
    """

    model_config = ConfigDict(validate_assignment=True)

    id: Name
    name: Name = ""
    parent: Name | None = None
    state: LocalState = LocalState.CREATED
    created_at: datetime
    started_at: datetime | None = None
    state_changed_at: datetime
    changed_at: datetime
    ended_at: datetime | None = None
    changes: int = 0
    told: Told = Field(default_factory=Told)

    def record(self) -> dict[str, Any]:
        """The final record, JSON-ready."""
        return {"kind": RECORD_KIND, **self.model_dump(mode="json")}


class FinishLocalRequest(Message):
    """Write the final record of a local run that has ended, and close its log."""

    status: LocalStatus
