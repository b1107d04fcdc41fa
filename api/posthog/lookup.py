"""What a path names, as dependencies of routes: the project, the parent task and the run, for whoever may see them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Request

from api.deps import Services, ServicesOf
from api.http.access import Grant
from api.told.core import ToldRun
from foundation.errors import Forbidden, NotFound, TaskNotFound
from storage.uploads.manifest import UploadedArtifact
from workflows.parents.messages import ParentStatus
from workflows.runs.messages import TaskStatus
from workflows.told.messages import LocalStatus

# The project that a key belongs to, as long as keys belong to all of them.
_CURRENT = "@current"
_CURRENT_PROJECT = "1"
# Runs of one request that are asked for at once.
_AT_ONCE = 16
_ANCESTORS_MOST = 10
_PROJECT = re.compile(r"(?:0|[1-9][0-9]{0,17})\Z")


def opened_by_token(purpose: str) -> Any:
    """A dependency of a route that a token of this purpose opens too, beside a key: put it among the route's own."""

    async def remember(request: Request) -> None:
        request.state.purpose = purpose

    return Depends(remember)


async def _grant(request: Request, services: ServicesOf) -> Grant:
    """What the request's credential opens. Raises Unauthorized, and Forbidden for a token that is not for this."""
    grant = services.access.grant(request)
    run = request.path_params.get("run_id")
    if not grant.opens(run and _uuid(run), getattr(request.state, "purpose", None)):
        raise Forbidden("This token does not open this; send a key.")
    return grant


GrantOf = Annotated[Grant, Depends(_grant)]


async def _project(project_id: str, grant: GrantOf) -> str:  # noqa: ARG001 -- whoever may not ask gets no 404
    if project_id == _CURRENT:
        return _CURRENT_PROJECT
    if not _PROJECT.match(project_id):
        raise NotFound("Project not found.")
    return project_id


ProjectOf = Annotated[str, Depends(_project)]


async def _parent(project: ProjectOf, task_id: str, services: ServicesOf) -> ParentStatus:
    return await services.parents.get(project, task_id)


ParentOf = Annotated[ParentStatus, Depends(_parent)]


@dataclass(frozen=True)
class FoundRun:
    """A run of a parent task, wherever it is executed, with all artifacts that it has."""

    parent: ParentStatus
    run: ToldRun
    artifacts: Sequence[UploadedArtifact] = ()

    @property
    def id(self) -> str:
        return self.run.status.id

    @property
    def cloud(self) -> TaskStatus | None:
        """The status of a run that is executed here."""
        return None if isinstance(self.run.status, LocalStatus) else self.run.status

    @property
    def local(self) -> LocalStatus | None:
        """The status of a run whose agent works elsewhere."""
        return self.run.local

    @property
    def resumed_from(self) -> str | None:
        """The id of the run that this one continues."""
        before = self.run.told.state.get("resume_from_run_id")
        return before if isinstance(before, str) else None


async def find_run(services: Services, parent: ParentStatus, run_id: str) -> FoundRun:
    """A run of the parent task by its id. Raises TaskNotFound."""
    run = await services.told.look(_uuid(run_id) or run_id)
    if run.status.parent != parent.id:
        raise TaskNotFound(f"No run '{run_id[:80]}' of this task.")
    return FoundRun(parent, run, await services.uploads.manifest(run.status.id))


async def runs_of(services: Services, parents: Sequence[ParentStatus]) -> dict[str, list[str]]:
    """The ids of the runs of each parent task, newest first, as far as Temporal still knows them."""
    await asyncio.gather(services.index.look(), services.told.index.look())
    found: dict[str, list[str]] = {}
    for parent in parents:
        rows = {row.id: row for index in (services.told.index, services.index) for row in index.of_owner(parent.id)}
        ordered = sorted(rows.values(), key=lambda row: (row.created_at, row.id), reverse=True)
        found[parent.id] = [row.id for row in ordered]
    return found


async def find_runs(services: Services, wanted: Sequence[tuple[ParentStatus, str]]) -> list[FoundRun]:
    """Runs by their ids, some at a time, without those that are gone meanwhile."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def find(parent: ParentStatus, run_id: str) -> FoundRun | None:
        async with turns:
            with suppress(TaskNotFound):
                return await find_run(services, parent, run_id)
        return None

    found = await asyncio.gather(*(find(parent, run_id) for parent, run_id in wanted))
    return [run for run in found if run is not None]


async def ancestors(services: Services, run: FoundRun) -> list[FoundRun]:
    """The runs that a run continues, the first of them first; the chain ends with one that is gone."""
    chain: list[FoundRun] = []
    known = {run.id}
    before = run.resumed_from
    while before is not None and before not in known and len(chain) < _ANCESTORS_MOST:
        try:
            found = await find_run(services, run.parent, before)
        except TaskNotFound:
            break
        known.add(found.id)
        chain.insert(0, found)
        before = found.resumed_from
    return chain


async def _run(parent: ParentOf, run_id: str, services: ServicesOf) -> FoundRun:
    return await find_run(services, parent, run_id)


RunOf = Annotated[FoundRun, Depends(_run)]


def _uuid(text: str) -> str | None:
    try:
        return str(UUID(text))
    except ValueError:
        return None
