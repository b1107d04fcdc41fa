"""Routes for tasks: what is to be done, of which runs are the executions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field, field_validator

from api.deps import ServicesOf
from api.parents import recorded
from api.posthog.forms import Form, Uuid, read_form
from api.posthog.lookup import FoundRun, GrantOf, ParentOf, ProjectOf, find_run, find_runs, runs_of
from api.posthog.models import DEFAULT_ORIGIN, SLUG_PREFIX, environment_of, status_of
from api.posthog.paging import PagingOf
from api.posthog.paths import TASK, TASKS
from api.posthog.runs import starting
from api.posthog.shown import shown_task, shown_tasks, with_run
from api.posthog.users import user
from foundation.errors import InvalidBody
from foundation.faults import Fault
from foundation.schemas.json_schema import fault as schema_fault
from foundation.urls import has_credentials
from workflows.parents.messages import DESCRIPTION_BYTES, TITLE_CHARS, ParentFields, ParentStatus

router = APIRouter(tags=["tasks"])

_SUMMARIES_MOST = 5000
_TITLE_CHARS = 80
_PAUSE_ROWS = 200
_SHORT = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+|[\w.-]+@[\w.-]+:\S+", re.IGNORECASE | re.ASCII)

# Fields of a task that its core knows under another name, and those that it only keeps.
_NAMES = {"json_schema": "output_schema", "origin_product": "origin"}
_FACTS = ("github_integration", "github_user_integration", "signal_report", "ci_prompt", "title_manually_set")


class TaskForm(Form):
    """What a task says; all of it may be left out."""

    title: Annotated[str, Field(max_length=TITLE_CHARS)] = ""
    description: Annotated[str, Field(max_length=DESCRIPTION_BYTES)] = ""
    origin_product: Annotated[str, Field(min_length=1, max_length=64)] = DEFAULT_ORIGIN
    repository: Annotated[str, Field(max_length=2000)] | None = None
    json_schema: dict[str, Any] | None = None
    internal: bool = False
    archived: bool = False
    title_manually_set: bool | None = None
    github_integration: int | None = None
    github_user_integration: Any = None
    signal_report: Uuid | None = None
    ci_prompt: Annotated[str, Field(max_length=10_000)] | None = None

    @field_validator("repository")
    @classmethod
    def _repository(cls, value: str | None) -> str | None:
        """A URL as it is, or ``org/repo`` in small letters."""
        value = (value or "").strip()
        if not value:
            return None
        if _URL.fullmatch(value):
            if has_credentials(value):
                raise ValueError("must not hold credentials, which would be kept with the task.")
            return value
        if not _SHORT.fullmatch(value):
            raise ValueError("Format for repository is organization/repo, or a URL.")
        return value.lower()

    @field_validator("json_schema")
    @classmethod
    def _json_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """Refused now, not only when a run gives its output."""
        if value is not None and (reason := schema_fault(value)) is not None:
            raise ValueError(f"This {reason}.")
        return value

    def fields(self) -> dict[str, Any]:
        """What was said, as the core names it."""
        said = self.model_dump(include=self.model_fields_set)
        facts = {name: said.pop(name) for name in _FACTS if name in said}
        named = {_NAMES.get(name, name): value for name, value in said.items()}
        return named | ({"facts": facts} if facts else {})


class _Ids(Form):
    ids: Annotated[list[Uuid], Field(max_length=_SUMMARIES_MOST)]


@router.post(TASKS, status_code=201, summary="Create a task")
async def create_task(project: ProjectOf, grant: GrantOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """A new task; it has no run yet. A title that is left out is the beginning of its description."""
    fields = (await read_form(request, TaskForm)).fields()
    fields["title"] = fields.get("title", "").strip() or _title_of(fields.get("description", ""))
    made = await services.parents.create(project, ParentFields.model_validate(fields), grant.holder)
    return await shown_task(request, services, made)


class Filters(BaseModel):
    """Which tasks a list is to have; of those that are archived or internal, only what is asked for."""

    search: Annotated[str, Field(max_length=500)] = ""
    status: Annotated[str, Field(max_length=64)] = ""
    stage: Annotated[str, Field(max_length=100)] = ""
    origin_product: Annotated[str, Field(max_length=64)] = ""
    organization: Annotated[str, Field(max_length=200)] = ""
    repository: Annotated[str, Field(max_length=2000)] = ""
    created_by: Annotated[str, Field(max_length=64)] = ""
    internal: bool = False
    archived: bool = False

    def want(self, parent: ParentStatus) -> bool:
        """Whether they let a task through, its runs not looked at."""
        of_repository = (parent.repository or "").lower()
        words = self.search.casefold().split()
        text = f"{parent.title} {parent.description} {SLUG_PREFIX}-{parent.number}".casefold() if words else ""
        return (
            (parent.archived, parent.internal) == (self.archived, self.internal)
            and (not self.origin_product or (parent.origin or DEFAULT_ORIGIN) == self.origin_product)
            and (not self.organization or of_repository.startswith(f"{self.organization.lower()}/"))
            and (not self.repository or of_repository == self.repository.lower())
            and (not self.created_by or self.created_by in map(str, user(parent.created_by).values()))
            and all(word in text for word in words)
        )

    def want_latest(self, run: FoundRun) -> bool:
        """Whether they let a task through that has this as its latest run."""
        return (not self.status or status_of(run) == self.status) and (
            not self.stage or run.run.told.stage == self.stage
        )


@router.get(TASKS, summary="List tasks")
async def list_tasks(
    project: ProjectOf,
    request: Request,
    services: ServicesOf,
    paging: PagingOf,
    filters: Annotated[Filters, Depends()],
) -> dict[str, Any]:
    """Tasks, newest first."""
    found = await _parents(services, project, filters.want)
    if filters.status or filters.stage:
        ids = await runs_of(services, found)
        latest = await find_runs(services, [(parent, ids[parent.id][0]) for parent in found if ids[parent.id]])
        fitting = {run.parent.id for run in latest if filters.want_latest(run)}
        found = [parent for parent in found if parent.id in fitting]
    page = await shown_tasks(request, services, found[paging.span])
    return paging.envelope(page, len(found))


@router.post(f"{TASKS}/summaries", summary="Look at many tasks at once")
async def summaries(project: ProjectOf, request: Request, services: ServicesOf, paging: PagingOf) -> dict[str, Any]:
    """The tasks of these ids, as short as a list needs them; what is not there is left out."""
    ids = set((await read_form(request, _Ids)).ids)
    found = await _parents(services, project, lambda parent: parent.id in ids)
    page = found[paging.span]
    of_parent = await runs_of(services, page)
    wanted = [(parent, of_parent[parent.id][0]) for parent in page if of_parent[parent.id]]
    latest = {run.parent.id: run for run in await find_runs(services, wanted)}
    return paging.envelope([_summary(parent, latest.get(parent.id)) for parent in page], len(found))


@router.get(TASK, summary="Get a task")
async def get_task(parent: ParentOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """One task, with its latest run."""
    return await shown_task(request, services, parent)


@router.patch(TASK, summary="Change a task")
async def change_task(parent: ParentOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Change what the body names; the rest stays."""
    fields = (await read_form(request, TaskForm)).fields()
    if not fields.get("title", "x").strip():
        raise InvalidBody.of([Fault("title", "This field may not be blank.", "blank")])
    changed = await services.parents.change(parent.project, parent.id, fields) if fields else parent
    return await shown_task(request, services, changed)


@router.delete(TASK, status_code=204, summary="Delete a task")
async def delete_task(parent: ParentOf, services: ServicesOf) -> Response:
    """The task is not there any more; its runs go on, and are found by the native API."""
    await services.parents.delete(parent.project, parent.id)
    return Response(status_code=204)


@router.post(f"{TASK}/run", summary="Run a task")
async def run_task(parent: ParentOf, grant: GrantOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Create a run in the cloud and start it: the task, whose latest run it is."""
    wanted = await read_form(request, starting.RunRequest)
    run_id = await starting.start(services, parent, grant.holder, wanted)
    return with_run(request, await find_run(services, parent, run_id))


async def _parents(
    services: ServicesOf, project: str, wanted: Callable[[ParentStatus], bool]
) -> Sequence[ParentStatus]:
    """The project's tasks for which this holds, newest first."""
    found = []
    for number, row in enumerate(await services.parents.rows(project), 1):
        parent = recorded.listed_status(row)
        if wanted(parent):
            found.append(parent)
        if number % _PAUSE_ROWS == 0:
            # Reading many rows is work for the processor: others get their turn.
            await asyncio.sleep(0)
    return found


def _summary(parent: ParentStatus, latest: FoundRun | None) -> dict[str, Any]:
    run = {"status": status_of(latest), "environment": environment_of(latest)} if latest else None
    return {
        "id": parent.id,
        "title": parent.title,
        "repository": parent.repository,
        "created_at": parent.created_at,
        "updated_at": parent.updated_at,
        "latest_run": run,
    }


def _title_of(description: str) -> str:
    line = next((line.strip() for line in description.splitlines() if line.strip()), "")
    return line if len(line) <= _TITLE_CHARS else line[: _TITLE_CHARS - 1] + "…"
