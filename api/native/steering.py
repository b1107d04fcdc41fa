"""The agent of a running task as the Task Orchestration dialect steers it: additions to the contract."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from api.deps import CoreOf, limited
from api.native import errors, examples, views
from api.native.bodies import read_form
from api.native.parameters import known_parameters
from api.runs.steering import steering
from foundation.errors import (
    Conflict,
    InvalidBody,
    InvalidParameter,
    PayloadTooLarge,
    RateLimitExceeded,
    ServiceUnavailable,
    SessionClosed,
    TaskAlreadyTerminal,
    TaskNotFound,
    TimedOut,
    UnsupportedMediaType,
)
from workflows.runs.steering.messages import (
    ANSWERS_MOST,
    REQUEST_ID_CHARS,
    SAID_CHARS,
    PermissionAnswer,
    PermissionDecision,
    PermissionMode,
    PermissionRequest,
    WaitingMessage,
)

router = APIRouter(prefix=f"{views.BASE}/{{task_id}}", tags=["agent"], dependencies=[Depends(known_parameters)])

_STEERED = (
    TaskNotFound,
    TaskAlreadyTerminal,
    SessionClosed,
    Conflict,
    RateLimitExceeded,
    TimedOut,
    ServiceUnavailable,
)
_SENT = (InvalidParameter, InvalidBody, PayloadTooLarge, UnsupportedMediaType)

Said = Annotated[str, Field(max_length=SAID_CHARS)]


class SentAnswer(BaseModel):
    """The answer to what the agent asks."""

    model_config = ConfigDict(extra="forbid")

    decision: PermissionDecision = Field(
        description="allow, allow_always (for the session) or deny", examples=["allow"]
    )
    message: Said | None = Field(None, description="What the agent is told with a denial")
    answers: dict[str, Said] = Field(
        default={}, max_length=ANSWERS_MOST, description="Answers to the agent's questions, by their text"
    )


class SentConfiguration(BaseModel):
    """Another model or permission mode; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, min_length=1, max_length=200, examples=["claude-opus-4-1-20250805"])
    permission_mode: PermissionMode | None = Field(None, description="Claude Code's own mode", examples=["plan"])


class InterruptReply(BaseModel):
    """The agent has confirmed."""

    task_id: str
    interrupted: bool = Field(description="False when the agent did nothing that could be interrupted")


class RequestsReply(BaseModel):
    """What the agent asks and waits for, oldest first."""

    task_id: str
    permission_requests: list[PermissionRequest]


class AnswerReply(BaseModel):
    """The answer that counts."""

    task_id: str
    request_id: str
    decision: PermissionDecision
    delivered: bool = Field(description="False while the machine sleeps: the agent gets it when it is awake")


class ConfigurationReply(BaseModel):
    """What the agent has confirmed, null for what was not changed."""

    task_id: str
    model: str | None
    permission_mode: str | None


class QueueReply(BaseModel):
    """The messages that the agent has not got yet, in their order."""

    task_id: str
    messages: list[WaitingMessage]


class ClearReply(BaseModel):
    """Ids of the messages that will not be delivered, and of one whose delivery was under way."""

    task_id: str
    cleared: list[str]
    delivering: str | None


def _body(form: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": examples.whole(form.model_json_schema()), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/interrupt",
    summary="Interrupt the agent",
    responses=errors.responses(*_STEERED)
    | examples.answer({"task_id": "task-001", "interrupted": True}, description="The agent has confirmed"),
)
async def interrupt(task_id: str, core: CoreOf) -> InterruptReply:
    """Stop what the agent does now. The run goes on: its agent waits for the next message, also with ``headless``."""
    done = await steering.interrupt(core, task_id)
    return InterruptReply(task_id=task_id, interrupted=done.interrupted)


@router.get(
    "/permissions",
    summary="Look at what the agent asks",
    responses=errors.responses(TaskNotFound, RateLimitExceeded)
    | examples.answer({"task_id": "task-001", "permission_requests": []}, description="The requests that are open"),
    dependencies=[limited("get")],
)
async def permission_requests(task_id: str, core: CoreOf) -> RequestsReply:
    """What the agent of a run with ``skip_permissions: false`` asks and waits for."""
    return RequestsReply(task_id=task_id, permission_requests=await steering.permission_requests(core, task_id))


@router.post(
    "/permissions/{request_id:path}",
    summary="Answer what the agent asks",
    openapi_extra=_body(SentAnswer, {"decision": "allow"}),
    responses=errors.responses(*_STEERED, *_SENT)
    | examples.answer(
        {"task_id": "task-001", "request_id": "94ee13a2", "decision": "allow", "delivered": True},
        description="The agent has the answer",
    ),
)
async def answer(
    task_id: str,
    request_id: Annotated[str, Path(max_length=REQUEST_ID_CHARS)],
    request: Request,
    core: CoreOf,
) -> AnswerReply:
    """Answer a request, once: the same answer again is a repetition, another one a conflict."""
    sent = await read_form(request, SentAnswer)
    given = PermissionAnswer(
        request_id=request_id, decision=sent.decision, message=sent.message, answers=dict(sent.answers)
    )
    done = await steering.answer(core, task_id, given)
    return AnswerReply(task_id=task_id, **done.model_dump())


@router.patch(
    "/agent",
    summary="Change the agent's model or permission mode",
    openapi_extra=_body(SentConfiguration, {"permission_mode": "plan"}),
    responses=errors.responses(*_STEERED, *_SENT)
    | examples.answer(
        {"task_id": "task-001", "model": None, "permission_mode": "plan"}, description="The agent has confirmed"
    ),
)
async def configure(task_id: str, request: Request, core: CoreOf) -> ConfigurationReply:
    """Change model or permission mode, from the agent's next request to the model on."""
    sent = await read_form(request, SentConfiguration)
    done = await steering.configure(core, task_id, model=sent.model, permission_mode=sent.permission_mode)
    return ConfigurationReply(task_id=task_id, **done.model_dump())


@router.get(
    "/messages",
    summary="Look at the messages that wait",
    responses=errors.responses(TaskNotFound, TaskAlreadyTerminal, RateLimitExceeded, ServiceUnavailable)
    | examples.answer(
        {"task_id": "task-001", "messages": [{"id": "m-1", "text": "Also this.", "delivering": False}]},
        description="The messages that the agent has not got yet",
    ),
    dependencies=[limited("get")],
)
async def messages(task_id: str, core: CoreOf) -> QueueReply:
    """The messages that the agent has not got yet; long ones are cut."""
    return QueueReply(task_id=task_id, messages=(await steering.messages(core, task_id)).messages)


@router.delete(
    "/messages",
    summary="Clear the messages that wait",
    responses=errors.responses(TaskNotFound, TaskAlreadyTerminal, TimedOut)
    | examples.answer(
        {"task_id": "task-001", "cleared": ["m-1"], "delivering": None}, description="What is not delivered"
    ),
)
async def clear_messages(task_id: str, core: CoreOf) -> ClearReply:
    """Drop the messages that wait. One whose delivery is under way is named, and may arrive."""
    return ClearReply(task_id=task_id, **(await steering.clear_messages(core, task_id)).model_dump())
