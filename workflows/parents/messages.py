"""Models in and out of the workflow of a parent task: what it was created with, its changes, and how it stands."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ConfigDict

from workflows.messages import Message, Name

# A text that is longer is refused by whoever takes it from a client: history and memo hold it whole.
TITLE_CHARS = 255
DESCRIPTION_BYTES = 64 * 1024
# Of the facts, and of the schema of the output, as JSON.
FACTS_BYTES = 32 * 1024


class ParentFields(Message):
    """What a parent task says: all of it may be changed.

    ``repository`` is a URL, or ``owner/name`` at the configured git host. ``output_schema`` is the JSON schema of what
    its runs are to give. ``facts`` are of whoever created it, and mean nothing here.
    """

    title: str = ""
    description: str = ""
    repository: str | None = None
    output_schema: dict[str, Any] | None = None
    origin: Name | None = None
    archived: bool = False
    internal: bool = False
    facts: dict[str, Any] = {}


class ParentStatus(ParentFields):
    """A parent task as it stands: answer of its query, its memo, and the argument of its workflow.

    ``number`` counts the parent tasks of a ``project`` from 1 on. ``revision`` counts its changes.
    """

    model_config = ConfigDict(validate_assignment=True)

    id: Name
    project: Name
    number: int
    created_by: Name
    created_at: datetime
    updated_at: datetime
    revision: int = 0
    deleted: bool = False

    @property
    def state(self) -> str:
        """What the search attribute of the state says: another text after each change, by which lists see it."""
        if self.deleted:
            return "deleted"
        return f"{OPEN}.{self.revision}" if self.revision else OPEN


OPEN = "open"


class ParentChange(Message):
    """Payload of the update ``change``: the fields to be changed, by their names in ``ParentFields``.

    ``facts`` are put to those there are.
    """

    fields: dict[str, Any]


class Deletion(Message):
    """Payload of the update ``delete``."""
