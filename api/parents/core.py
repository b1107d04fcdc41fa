"""The one core of parent tasks behind every dialect: create, look at, list, change and delete them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from api.parents import recorded
from api.parents.numbers import Numbers
from api.temporal.client import Engine
from api.temporal.executions import Executions
from api.temporal.index import RunIndex
from api.temporal.rows import Row
from foundation.errors import InvalidBody, ParentNotFound
from foundation.faults import Fault
from foundation.units import format_size
from storage.bucket import Bucket
from workflows import names
from workflows.parents.messages import (
    DESCRIPTION_BYTES,
    FACTS_BYTES,
    TITLE_CHARS,
    Deletion,
    ParentChange,
    ParentFields,
    ParentStatus,
)

_SUMMARY_BYTES = 200


class Parents:
    """What can be done with parent tasks. What another project owns is not there.

    Every method raises errors of the one tree, never Temporal's or S3's own.
    """

    def __init__(self, engine: Engine, bucket: Bucket, index: RunIndex[ParentStatus]) -> None:
        self._executions = Executions(engine, names.PARENTS)
        self._index = index
        self._numbers = Numbers(bucket)

    async def create(self, project: str, fields: ParentFields, created_by: str) -> ParentStatus:
        """A new parent task of the project, with an id and a number of its own.

        Raises InvalidBody for what is too long, EngineUnavailable, BucketUnavailable.
        """
        check_fields(fields.model_dump())
        parent_id, now = str(uuid4()), datetime.now(UTC)
        number = await asyncio.to_thread(self._numbers.claim, project, parent_id)
        status = ParentStatus(
            **fields.model_dump(),
            id=parent_id,
            project=project,
            number=number,
            created_by=created_by,
            created_at=now,
            updated_at=now,
        )
        summary = " ".join(status.title.split()).encode()[:_SUMMARY_BYTES].decode(errors="ignore")
        run_id = await self._executions.start(
            parent_id,
            status,
            status,
            recorded.search_attributes(status),
            summary=summary or f"Task {number}",
            details=status.description[:2000],
            named="the task",
        )
        self._index.note(status, run_id or "")
        return status

    async def get(self, project: str, parent_id: str) -> ParentStatus:
        """A parent task as it stands. Raises ParentNotFound, EngineUnavailable."""
        described = await self._executions.describe(_checked(parent_id))
        status = await recorded.status_of(described) if described else None
        if status is None or status.deleted or status.project != project:
            raise _not_found(parent_id)
        return status

    async def change(self, project: str, parent_id: str, fields: dict[str, Any]) -> ParentStatus:
        """Change fields of a parent task, named as in ``ParentFields``, and give it as it stands then.

        Raises InvalidBody for what is too long, ParentNotFound, TimedOut when no worker takes the change,
        ServiceUnavailable, EngineUnavailable.
        """
        check_fields(fields)
        await self.get(project, parent_id)
        changed = await self._executions.update(
            parent_id, names.CHANGE_PARENT, ParentChange(fields=fields), ParentStatus
        )
        if changed is None or changed.deleted:
            raise _not_found(parent_id)
        return changed

    async def delete(self, project: str, parent_id: str) -> None:
        """Delete a parent task; its runs stay. Raises as ``change`` does."""
        await self.get(project, parent_id)
        await self._executions.update(parent_id, names.DELETE_PARENT, Deletion(), ParentStatus)

    async def rows(self, project: str) -> Sequence[Row]:
        """The rows of a project's parent tasks, newest first. Raises EngineUnavailable."""
        await self._index.look()
        ordered = self._index.ordered("created_at", lambda row: row.created_at)
        return [row for row in reversed(ordered) if row.owner == project and not row.ended]

    async def close(self) -> None:
        """End what runs beside the requests."""
        await self._index.close()


def check_fields(fields: dict[str, Any]) -> None:
    """Raise InvalidBody for fields of a parent task that are too long, with each of them."""
    faults = []
    if len(str(fields.get("title") or "")) > TITLE_CHARS:
        faults.append(Fault("title", f"has more than {TITLE_CHARS} characters", "max_length"))
    bounds = {"description": DESCRIPTION_BYTES, "output_schema": FACTS_BYTES, "facts": FACTS_BYTES}
    for name, most in bounds.items():
        value = fields.get(name)
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text.encode(errors="replace")) > most:
            faults.append(Fault(name, f"takes more than {format_size(most)}", "max_length"))
    if faults:
        raise InvalidBody.of(faults)


def _checked(parent_id: str) -> str:
    """The id. Raises ParentNotFound for what can be none."""
    try:
        return str(UUID(parent_id))
    except ValueError:
        raise _not_found(parent_id) from None


def _not_found(parent_id: str) -> ParentNotFound:
    return ParentNotFound(f"No task '{parent_id[:80]}' in this project.")
