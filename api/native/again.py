"""The Task Orchestration dialect: a run's manifest submitted again, to repeat the run or to go on from its end."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from api.deps import ServicesOf, limited
from api.native import errors, examples, views
from api.native.bodies import Continuation, read_form
from api.native.parameters import known_parameters
from api.runs.retrying import resume, retry
from foundation.errors import (
    Conflict,
    DuplicateTaskId,
    InsufficientResources,
    InvalidBody,
    InvalidManifest,
    PayloadTooLarge,
    RateLimitExceeded,
    TaskNotFound,
    UnsupportedMediaType,
)

router = APIRouter(prefix=views.BASE, tags=["tasks"], dependencies=[Depends(known_parameters)])


@router.post(
    "/{task_id}/retry",
    status_code=202,
    summary="Submit a task's manifest again",
    responses=errors.responses(
        TaskNotFound, Conflict, InvalidManifest, PayloadTooLarge, RateLimitExceeded, InsufficientResources
    )
    | examples.answer(examples.SUBMITTED, 202, "The new run was accepted"),
    dependencies=[Depends(errors.refuse_with(accepted=False, task_id="")), limited("submit")],
)
async def retry_task(task_id: str, request: Request, services: ServicesOf) -> views.SubmitReply:
    """Start a run of the same manifest under an id of its own; its label ``retry-of`` names the run it repeats."""
    status, warnings = await retry(services.core, task_id, services.access.holder(request))
    services.metrics.submitted.inc()
    return views.submitted(status, warnings)


@router.post(
    "/{task_id}/resume",
    status_code=202,
    summary="Go on from where a task has ended",
    openapi_extra=examples.RESUME_BODY,
    responses=errors.responses(
        TaskNotFound,
        Conflict,
        DuplicateTaskId,
        InvalidManifest,
        InvalidBody,
        PayloadTooLarge,
        UnsupportedMediaType,
        RateLimitExceeded,
        InsufficientResources,
    )
    | examples.answer(examples.SUBMITTED, 202, "The new run was accepted"),
    dependencies=[Depends(errors.refuse_with(accepted=False, task_id="")), limited("submit")],
)
async def resume_task(task_id: str, request: Request, services: ServicesOf) -> views.SubmitReply:
    """Start a run on the files that an ended one has left, in its agent's conversation, with a prompt of its own.

    All else is as in the manifest of that run. ``resume`` of a manifest does the same and may change the rest.
    """
    sent = await read_form(request, Continuation)
    viewer = services.access.holder(request)
    status, warnings = await resume(
        services.core, task_id, viewer, sent.prompt, new_id=sent.id, conversation=sent.conversation
    )
    services.metrics.submitted.inc()
    return views.submitted(status, warnings)
