"""The Task Orchestration dialect: /api/v1/tasks (contract, section 2)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.deps import CoreOf, ServicesOf, limited
from api.http.downloads import ArtifactResponse, headers_of
from api.http.ranges import parse_range
from api.http.streams import LogResponse
from api.native import errors, examples, log_formats, views
from api.native.bodies import Addition, Cancellation, SentMessage, SentNetwork, read_form
from api.native.envelope import read_body
from api.native.parameters import known_parameters, labels_of, parse_entry_id, parse_since, parse_states
from api.runs import listing, log
from api.runs.network import change_network, network
from api.runs.preservation import as_kept_now
from foundation.errors import (
    ArtifactNotFound,
    Conflict,
    DuplicateTaskId,
    InsufficientResources,
    InvalidBody,
    InvalidManifest,
    InvalidParameter,
    PayloadTooLarge,
    RangeNotSatisfiable,
    RateLimitExceeded,
    SessionClosed,
    TaskAlreadyTerminal,
    TaskNotFound,
    TimedOut,
    UnsupportedMediaType,
)
from workflows.messages import SENTENCE_CHARS
from workflows.runs.messages import CancelRequest, ContinueRequest, NetworkChange, UserMessage

router = APIRouter(prefix=views.BASE, tags=["tasks"], dependencies=[Depends(known_parameters)])


@router.post(
    "",
    status_code=202,
    summary="Submit a task",
    openapi_extra=examples.MANIFEST_BODY,
    responses=errors.responses(
        InvalidManifest,
        DuplicateTaskId,
        PayloadTooLarge,
        UnsupportedMediaType,
        RateLimitExceeded,
        InsufficientResources,
    )
    | examples.answer(examples.SUBMITTED, 202, "The run was accepted")
    | examples.answer(examples.CHECKED, 200, "With dry_run: the manifest would be accepted"),
    dependencies=[Depends(errors.refuse_with(accepted=False, task_id="")), limited("submit")],
)
async def submit(
    request: Request,
    response: Response,
    services: ServicesOf,
    dry_run: Annotated[bool, Query(description="Only check the manifest: 200 when it would be accepted")] = False,
) -> views.SubmitReply | views.CheckReply:
    """Start a run of a manifest. Its id is ``metadata.id``, or made by the server when there is none."""
    core = services.core
    content_type, body = request.headers.get("content-type", ""), await request.body()
    submission = await services.submissions.take(lambda: read_body(content_type, body))
    viewer = services.access.holder(request)
    if dry_run:
        await core.check(submission.manifest, viewer)
        response.status_code = 200
        return views.checked(submission.warnings)
    status = await core.submit(submission.manifest, viewer=viewer)
    services.metrics.submitted.inc()
    return views.submitted(status, submission.warnings)


@router.get(
    "",
    summary="List tasks",
    openapi_extra=examples.LABEL_PARAMETER,
    responses=errors.responses(InvalidParameter, RateLimitExceeded)
    | examples.answer(examples.LIST, description="A page of runs"),
    dependencies=[limited("list")],
    response_model=views.TaskList,
)
async def list_tasks(
    request: Request,
    core: CoreOf,
    state: Annotated[str | None, Query(description="Comma-separated states", examples=["running,completing"])] = None,
    limit: Annotated[int, Query(ge=1, le=listing.MAX_LIMIT)] = listing.DEFAULT_LIMIT,
    offset: Annotated[int, Query(ge=0)] = 0,
    sort: Annotated[listing.Sort, Query()] = "created_at",
    order: Annotated[listing.Order, Query()] = "desc",
) -> Response:
    """Runs, newest first. ``label.KEY=VALUE`` filters by a label and may be given several times."""
    query = listing.TaskQuery(
        states=parse_states(state), labels=labels_of(request), limit=limit, offset=offset, sort=sort, order=order
    )
    return Response(views.task_list(await core.find(query), limit, offset), media_type="application/json")


@router.get(
    "/{task_id}",
    summary="Get a task",
    responses=errors.responses(TaskNotFound, RateLimitExceeded)
    | examples.answer(examples.DETAIL, description="The run"),
    dependencies=[limited("get")],
)
async def get_task(task_id: str, services: ServicesOf) -> views.TaskDetail:
    """One run as it stands, with its live progress and its manifest without secrets."""
    view = await services.core.status(task_id, definition=True)
    return views.detail(await as_kept_now(view, services.bucket))


@router.delete(
    "/{task_id}",
    summary="Cancel a task",
    openapi_extra=examples.CANCEL_BODY,
    responses=errors.responses(
        TaskNotFound, TaskAlreadyTerminal, InvalidParameter, InvalidBody, PayloadTooLarge, UnsupportedMediaType
    )
    | examples.answer(examples.CANCELLED, description="The run was told to end"),
    dependencies=[Depends(errors.refuse_with(success=False))],
)
async def cancel_task(
    task_id: str,
    request: Request,
    core: CoreOf,
    reason: Annotated[str | None, Query(description="Why; the body's reason wins", max_length=SENTENCE_CHARS)] = None,
    force: Annotated[bool | None, Query(description="Kill the agent without its grace period")] = None,
) -> views.CancelReply:
    """Ask a run to end: its agent is stopped, its artifacts are collected, its machine is torn down."""
    given = Cancellation()
    if (await request.body()).strip():
        given = await read_form(request, Cancellation, of_any_type=True)
    wanted = {"reason": given.reason or reason or None, "force": force if given.force is None else given.force}
    cancel = CancelRequest.model_validate({key: value for key, value in wanted.items() if value is not None})
    before = await core.cancel(task_id, cancel)
    return views.CancelReply(
        task_id=task_id,
        previous_state=before.state,
        message="Cancellation requested; the task is cancelled once its agent has stopped and its artifacts are stored",
        cancelled_at=datetime.now(UTC),
    )


@router.post(
    "/{task_id}/messages",
    status_code=202,
    summary="Send the agent a message",
    openapi_extra=examples.MESSAGE_BODY,
    responses=errors.responses(
        TaskNotFound,
        TaskAlreadyTerminal,
        SessionClosed,
        InvalidParameter,
        InvalidBody,
        PayloadTooLarge,
        UnsupportedMediaType,
        RateLimitExceeded,
    )
    | examples.answer(examples.MESSAGE, 202, "The message was handed over"),
)
async def send_message(task_id: str, request: Request, core: CoreOf) -> views.MessageReply:
    """Hand the running agent a further turn. A message sent before the agent runs waits for it."""
    message = await read_form(request, SentMessage)
    await core.send_message(task_id, UserMessage(text=message.text, id=message.id))
    return views.MessageReply(task_id=task_id, message_id=message.id)


@router.post(
    "/{task_id}/close",
    status_code=202,
    summary="Close the agent's session",
    responses=errors.responses(TaskNotFound, TaskAlreadyTerminal)
    | examples.answer(examples.MESSAGE | {"message_id": None}, 202, "The session ends after its last answer"),
)
async def close_session(task_id: str, core: CoreOf) -> views.MessageReply:
    """End a session that was opened with ``headless: false`` after its last answer; the run then completes."""
    await core.close_session(task_id)
    return views.MessageReply(task_id=task_id)


@router.post(
    "/{task_id}/continue",
    status_code=202,
    summary="Continue a task that has used up its budget",
    openapi_extra=examples.CONTINUE_BODY,
    responses=errors.responses(
        TaskNotFound,
        TaskAlreadyTerminal,
        Conflict,
        InvalidParameter,
        InvalidBody,
        PayloadTooLarge,
        UnsupportedMediaType,
        TimedOut,
    )
    | examples.answer(examples.CONTINUED, 202, "The limits from now on"),
)
async def continue_task(task_id: str, request: Request, core: CoreOf) -> views.ContinueReply:
    """Add to the budget of a run in state ``awaiting_decision``: its agent goes on where it was, in the same session.

    409 when the run does not wait for that, 400 when what is added would not let it go on; nothing is added then.
    """
    added = await read_form(request, Addition)
    continued = await core.continue_run(task_id, ContinueRequest(budget_usd=added.budget_usd, tokens=added.tokens))
    return views.ContinueReply(task_id=task_id, **continued.model_dump())


@router.get(
    "/{task_id}/network",
    summary="Look at a task's network",
    responses=errors.responses(TaskNotFound, RateLimitExceeded)
    | examples.answer(examples.NETWORK, description="What the machine may reach, and what it asked for"),
    dependencies=[limited("get")],
)
async def get_network(task_id: str, core: CoreOf) -> views.NetworkReply:
    """What the run's machine may reach beside the model gateway, and which connections it asked for so far."""
    return views.network_reply(task_id, await network(core, task_id))


@router.patch(
    "/{task_id}/network",
    summary="Change a task's network",
    openapi_extra=examples.NETWORK_BODY,
    responses=errors.responses(
        TaskNotFound,
        TaskAlreadyTerminal,
        Conflict,
        InvalidParameter,
        InvalidBody,
        PayloadTooLarge,
        UnsupportedMediaType,
        RateLimitExceeded,
        TimedOut,
    )
    | examples.answer(examples.NETWORK, description="The policy that is in force now, or kept for the machine to come"),
)
async def patch_network(task_id: str, request: Request, core: CoreOf) -> views.NetworkReply:
    """Change what the run's machine may reach; open connections to what is no longer allowed are cut.

    The answer comes once the change is in force. Sending it again changes nothing, but for a rule that is gone.
    """
    sent = await read_form(request, SentNetwork)
    change = NetworkChange(mode=sent.mode, allow=sent.allow, remove=sent.remove)
    changed, in_vain = await change_network(core, task_id, change)
    return views.network_reply(task_id, changed, in_vain)


@router.get(
    "/{task_id}/logs",
    summary="Read or follow the log",
    response_class=StreamingResponse,
    dependencies=[limited("logs")],
    responses=errors.responses(TaskNotFound, InvalidParameter, RateLimitExceeded)
    | {
        200: {
            "description": "The log, in the form that Accept asks for; followed: server-sent events unless it asks",
            "content": {
                "text/plain": {"example": '[2026-01-29T10:30:00.000Z] [STDOUT] {"type":"result"}\n'},
                "application/x-ndjson": {"example": '{"id":1,"timestamp":"…","stream":"stdout","data":"…"}\n'},
                "text/event-stream": {"example": "event: stdout\ndata: …\nid: 1\n\n"},
            },
        }
    },
)
async def read_logs(
    task_id: str,
    services: ServicesOf,
    follow: Annotated[bool, Query(description="Stay until the run has ended")] = False,
    stream: Annotated[log.Stream, Query()] = "all",
    since: Annotated[str | None, Query(description="ISO-8601 time")] = None,
    tail: Annotated[int, Query(ge=0, lt=2**63, description="Only the last entries; 0: all")] = 0,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str, Header(description="Go on after this entry")] = "",
) -> StreamingResponse:
    """The run's log: Claude Code's stream-json on stdout, its stderr, and Taskyard's own events."""
    core = services.core
    query = log.LogQuery(
        stream=stream,
        since=parse_since(since),
        tail=tail,
        after_id=parse_entry_id(last_event_id, "Last-Event-ID"),
        follow=follow,
    )
    await core.status(task_id)
    writing = log_formats.negotiate(accept, follow=follow)
    return LogResponse(
        log_formats.written(query, writing, task_id, core, services.bucket, services.followers), writing.media_type
    )


@router.get(
    "/{task_id}/artifacts",
    summary="List artifacts",
    responses=errors.responses(TaskNotFound, InvalidParameter)
    | examples.answer(examples.ARTIFACTS, description="What the run has left so far"),
)
async def list_artifacts(
    task_id: str,
    core: CoreOf,
    hidden: Annotated[bool, Query(description="Also what is kept for runs that continue this one")] = False,
) -> views.ArtifactList:
    """What the run has left so far; the patch, the list of untracked files and metadata.json are always among it."""
    return views.artifact_list(task_id, await core.artifacts(task_id, hidden=hidden))


@router.get(
    "/{task_id}/artifacts/{name:artifact}",
    summary="Download an artifact",
    response_class=StreamingResponse,
    responses=errors.responses(TaskNotFound, ArtifactNotFound, RangeNotSatisfiable)
    | {
        200: {"description": "The bytes", "content": {"*/*": {"example": "# Report\n"}}},
        206: {"description": "The range asked for", "content": {"*/*": {"example": "# Re"}}},
    },
)
async def download_artifact(
    task_id: str,
    name: str,
    services: ServicesOf,
    range_header: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header(description="An ETag: the range only while it is this one's")] = None,
) -> Response:
    """One artifact, by its name or its path in the workspace, whole or in part."""
    core = services.core
    artifact = await core.artifact(task_id, name)
    size = artifact.size_bytes
    headers = headers_of(artifact)
    part = None if if_range not in {None, headers["ETag"]} else parse_range(range_header, size)
    offset, length = part or (0, size)
    headers["Content-Length"] = str(length)
    if part is not None:
        headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{size}"
    return ArtifactResponse(
        await core.open_artifact(task_id, artifact.name, offset, length),
        services.readers,
        status_code=200 if part is None else 206,
        media_type=artifact.content_type,
        headers=headers,
    )


@router.head(
    "/{task_id}/artifacts/{name:artifact}",
    summary="Look at an artifact's size and checksum",
    response_class=Response,
    responses={
        200: {"description": "The headers of a download", "content": {"*/*": {"example": ""}}},
        404: {"description": "No such run or artifact", "content": {"application/json": {"example": ""}}},
        503: {"description": "Something that the server needs does not answer"},
    },
)
async def look_at_artifact(task_id: str, name: str, core: CoreOf) -> Response:
    """What a download would begin with, and none of its bytes."""
    artifact = await core.artifact(task_id, name)
    return Response(media_type=artifact.content_type, headers=headers_of(artifact))
