"""Routes for the runs of a task: created, started, listed, looked at, told of and cancelled."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field, field_validator

from api.deps import ServicesOf
from api.posthog.errors import told_as_view
from api.posthog.forms import Form, form_of, read_form
from api.posthog.lookup import FoundRun, GrantOf, ParentOf, RunOf, find_run, find_runs, runs_of
from api.posthog.models import STATES, run_object
from api.posthog.paging import PagingOf
from api.posthog.paths import RUN, RUNS
from api.posthog.runs import starting
from api.posthog.runs.manifests import CloudOptions, RunOptions
from api.posthog.shown import with_run
from foundation.errors import InvalidParameter, TaskAlreadyTerminal
from workflows.messages import SENTENCE_CHARS
from workflows.runs.messages import CancelRequest
from workflows.runs.states import TaskState
from workflows.told.record import Change
from workflows.told.states import LocalState

router = APIRouter(tags=["runs"])

Status = Literal["not_started", "queued", "in_progress", "completed", "failed", "cancelled"]

# Keys of a run's state that clients do not write: they mean something to whoever executes it.
_OWN_KEYS = frozenset({"github_credential_source", "pr_authorship_mode", "sandbox_id"})
_HANDED_OVER = "handoff"


class _Creation(RunOptions):
    environment: Literal["local", "cloud"] = "local"


class _Patch(Form):
    """What is told of a run; what is left out says nothing, and null takes back what was told."""

    status: Status | None = None
    stage: Annotated[str, Field(max_length=100)] | None = None
    branch: Annotated[str, Field(max_length=255)] | None = None
    output: Any = None
    state: dict[str, Any] | None = None
    state_remove_keys: list[Annotated[str, Field(min_length=1)]] = []
    error_message: str | None = None
    environment: Literal["local"] | None = None

    def change(self) -> Change:
        """The same as the core takes it."""
        said = self.model_fields_set
        cleared = [
            name
            for name in ("stage", "branch", "output", "error_message")
            if name in said and getattr(self, name) is None
        ]
        state = self.state and {key: value for key, value in self.state.items() if key not in _OWN_KEYS}
        return Change(
            enter=STATES[self.status] if self.status else None,
            stage=self.stage,
            branch=self.branch,
            output=self.output,
            state=state or None,
            error_message=self.error_message,
            environment=self.environment,
            cleared=cleared,
            remove_keys=[key for key in self.state_remove_keys if key not in _OWN_KEYS],
        )


class _Cancellation(Form):
    reason: Annotated[str, Field(max_length=SENTENCE_CHARS)] | None = None
    only_if_awaiting_first_message: bool = False


class _Relay(Form):
    text: Annotated[str, Field(max_length=10_000)]

    @field_validator("text")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("This field may not be blank.")
        return value


@router.get(RUNS, summary="List the runs of a task")
async def list_runs(parent: ParentOf, request: Request, services: ServicesOf, paging: PagingOf) -> dict[str, Any]:
    """The runs of a task that Temporal still knows, newest first."""
    ids = (await runs_of(services, [parent]))[parent.id]
    page = await find_runs(services, [(parent, run_id) for run_id in ids[paging.span]])
    return paging.envelope([run_object(request, run) for run in page], len(ids))


@router.post(RUNS, status_code=201, summary="Create a run")
async def create_run(parent: ParentOf, grant: GrantOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """A run that is not started: a local one, whose agent works elsewhere, or one in the cloud, for ``start``."""
    wanted = await read_form(request, _Creation)
    if wanted.environment == "cloud":
        options = form_of(CloudOptions, wanted.model_dump())
        run_id = await starting.hold(services, parent, grant.holder, options)
        return run_object(request, await find_run(services, parent, run_id))
    run_id = str(uuid4())
    told = starting.told_of(wanted, wanted.told(), wanted.environment)
    change = Change(state=told.state, branch=told.branch, environment=told.environment, mode=told.mode)
    await services.told.create(run_id, state=LocalState.QUEUED, name=parent.title, parent=parent.id, told=change)
    return run_object(request, await find_run(services, parent, run_id))


@router.get(RUN, summary="Get a run")
async def get_run(run: RunOf, request: Request) -> dict[str, Any]:
    """One run of a task."""
    return run_object(request, run)


@router.patch(RUN, summary="Tell of a run", dependencies=[Depends(told_as_view())])
async def patch_run(run: RunOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Tell how a run stands. Output and state are merged key by key; what has ended stays as it is."""
    patch = await read_form(request, _Patch)
    told = FoundRun(run.parent, await services.told.tell(run.id, patch.change()), run.artifacts)
    if patch.environment == "local" and told.cloud is not None and not told.run.ended:
        await _cancel(told, services, _HANDED_OVER)
    return run_object(request, told)


@router.post(
    f"{RUN}/start", summary="Start a run that was created", dependencies=[Depends(told_as_view(InvalidParameter))]
)
async def start_run(run: RunOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Start a run in the cloud, with a first message if one is given: the task, whose latest run it is."""
    wanted = await read_form(request, starting.FirstMessage)
    if run.cloud is None or run.cloud.state is not TaskState.PENDING:
        raise InvalidParameter("Only a run in the cloud that has not been started can be started.")
    files = starting.chosen(run.artifacts, wanted.pending_user_artifact_ids)
    prompt = await starting.first_prompt(services, run.parent, wanted.pending_user_message, files)
    await services.core.start_held(run.id, prompt)
    return with_run(request, await find_run(services, run.parent, run.id))


@router.post(
    f"{RUN}/cancel", status_code=202, summary="Cancel a run", dependencies=[Depends(told_as_view(InvalidParameter))]
)
async def cancel_run(run: RunOf, request: Request, response: Response, services: ServicesOf) -> dict[str, Any]:
    """Ask a run in the cloud to end; 200 when it has ended already, or is to end only if it has no message yet."""
    wanted = await read_form(request, _Cancellation)
    if run.cloud is None:
        raise InvalidParameter("Only a run in the cloud can be cancelled; tell the status of a local one.")
    at_work = wanted.only_if_awaiting_first_message and not run.cloud.held
    if run.run.ended or at_work or not await _cancel(run, services, wanted.reason):
        response.status_code = 200
    return run_object(request, await find_run(services, run.parent, run.id))


@router.post(
    f"{RUN}/resume_in_cloud",
    summary="Go on with a run in the cloud",
    dependencies=[Depends(told_as_view(InvalidParameter))],
)
async def resume_in_cloud(run: RunOf, grant: GrantOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """A run in the cloud that goes on where this one ended; a local one that is not over yet is ended by that.

    Asked for again it is the same run, so that a lost answer starts no second one.
    """
    if run.cloud is not None and not run.run.ended:
        raise InvalidParameter("The run is active in the cloud already.")
    resumed = await starting.resume(services, run, grant.holder)
    if not run.run.ended:
        # Only now: what cannot be started ends nothing, and whoever was cut off before this asks again.
        await services.told.tell(run.id, Change(enter=LocalState.CANCELLED, error_message=_HANDED_OVER))
    return run_object(request, resumed)


@router.get(f"{RUN}/peers", summary="Runs that work on the same")
async def peers(run: RunOf) -> dict[str, Any]:  # noqa: ARG001 -- which has to be there
    """Runs here have no peers."""
    return {"peers": []}


@router.post(f"{RUN}/relay_message", summary="Relay a message")
async def relay_message(run: RunOf, request: Request) -> dict[str, str]:  # noqa: ARG001 -- which has to be there
    """There is nothing here that messages are relayed to."""
    await read_form(request, _Relay)
    return {"status": "skipped"}


async def _cancel(run: FoundRun, services: ServicesOf, reason: str | None) -> bool:
    """Ask a run in the cloud to end; false when it has ended meanwhile."""
    try:
        await services.core.cancel(run.id, CancelRequest(reason=reason) if reason else CancelRequest())
    except TaskAlreadyTerminal:
        return False
    return True
