"""Processes of a run's machine that outlive their callers: /api/v1/tasks/{id}/processes and below."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from api.deps import Services, ServicesOf
from api.machines.answer import TOLD, HostAnswer
from api.native import errors, examples, views
from api.native.bodies import read_form
from api.native.parameters import known_parameters
from foundation.errors import (
    Conflict,
    HostUnreachable,
    InsufficientResources,
    InvalidBody,
    InvalidParameter,
    MachineLost,
    MachineUnavailable,
    NotFound,
    PayloadTooLarge,
    RateLimitExceeded,
    SessionClosed,
    TaskNotFound,
    UnsupportedMediaType,
)
from foundation.service.processes import KEY, Processes, ProcessRecord, ProcessSpec, SentSignal, StdinTaken
from storage.layout import TASKS
from storage.processes.outputs import kept_output, kept_record, kept_records

router = APIRouter(
    prefix=f"{views.BASE}/{{task_id}}/processes", tags=["machines"], dependencies=[Depends(known_parameters)]
)

# Of what a machine writes no browser is to make a page of this server.
_TOLD = (*TOLD, "x-content-type-options")
_MACHINE = (TaskNotFound, MachineUnavailable, MachineLost, HostUnreachable, InvalidParameter)
_BODY = (InvalidBody, PayloadTooLarge, UnsupportedMediaType)
_LARGEST = 2**53

Key = Annotated[str, Path(pattern=rf"^{KEY.pattern}$", description="The process's key", examples=["build-1"])]
Offset = Annotated[int, Query(ge=0, le=_LARGEST, description="From this byte on")]


@router.post(
    "",
    summary="Start a process",
    response_model=ProcessRecord,
    responses=errors.responses(*_MACHINE, *_BODY, Conflict, InsufficientResources) | examples.answer(examples.PROCESS),
    openapi_extra=examples.PROCESS_BODY,
)
async def start_process(task_id: str, request: Request, services: ServicesOf) -> ProcessRecord:
    """Start a process in the run's machine that lives until it ends, whoever started it; once for its key.

    The same key and the same process give what is known of it; the same key and another process are a conflict.
    """
    spec = await read_form(request, ProcessSpec)
    return await _asked(services, task_id, (), spec.model_dump_json(exclude_none=True))


@router.get(
    "",
    summary="List processes",
    response_model=Processes,
    responses=errors.responses(*_MACHINE) | examples.answer({"processes": [examples.PROCESS]}),
)
async def list_processes(task_id: str, services: ServicesOf) -> Response:
    """What is known of the processes of the run's machine, the agent among them.

    Once the machine is gone, of those whose output is kept.
    """
    if await services.machines.is_gone(task_id):
        records = await asyncio.to_thread(kept_records, services.bucket, TASKS.place(task_id))
        return _json(Processes(processes=[_ended(record) for record in records]))
    return _answer(services, task_id, "GET")


@router.get(
    "/{key}",
    summary="Look at a process, or wait for its end",
    response_model=ProcessRecord,
    responses=errors.responses(*_MACHINE, NotFound, RateLimitExceeded) | examples.answer(examples.PROCESS),
)
async def look_at_process(
    task_id: str,
    key: Key,
    services: ServicesOf,
    wait: Annotated[float, Query(ge=0, le=300, description="Seconds to wait for its end")] = 0.0,
) -> Response:
    """Whether it runs, or how it ended; with ``wait`` once it has, or after so many seconds."""
    if await services.machines.is_gone(task_id):
        return _json(await _kept(services, task_id, key))
    return _answer(services, task_id, "GET", key, params={"wait": f"{wait:.3f}"})


@router.get(
    "/{key}/output",
    summary="Read what a process writes",
    response_class=Response,
    responses=errors.responses(*_MACHINE, NotFound, RateLimitExceeded)
    | {200: {"description": "The bytes", "content": {"application/octet-stream": {"example": "hello\n"}}}},
)
async def read_output(
    task_id: str,
    key: Key,
    services: ServicesOf,
    stream: Annotated[Literal["stdout", "stderr"], Query(description="Which of the two")] = "stdout",
    offset: Offset = 0,
    follow: Annotated[bool, Query(description="Go on until the process has ended")] = False,
) -> Response:
    """One of its streams from a byte on. With ``follow`` the answer ends when the process has, and all was sent.

    Once the machine is gone, what is kept of it: known secret values are masked there.
    """
    if await services.machines.is_gone(task_id):
        await _kept(services, task_id, key)
        pieces = kept_output(services.bucket, TASKS.place(task_id), key, stream, offset)
        kind = {"X-Content-Type-Options": "nosniff"}
        return StreamingResponse(pieces, media_type="application/octet-stream", headers=kind)
    params = {"stream": stream, "offset": str(offset), "follow": "true" if follow else "false"}
    return _answer(services, task_id, "GET", key, "output", params=params)


@router.put(
    "/{key}/stdin",
    summary="Feed a process",
    response_model=StdinTaken,
    responses=errors.responses(*_MACHINE, NotFound, Conflict, SessionClosed) | examples.answer({"bytes": 4}),
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"example": "yes\n"}}}},
)
async def feed_process(
    task_id: str,
    key: Key,
    services: ServicesOf,
    offset: Offset = 0,
    close: Annotated[bool, Query(description="And nothing comes after it")] = False,
) -> Response:
    """Have the body be the bytes of its stdin from ``offset`` on; sent again, what has come already is left out."""
    params = {"offset": str(offset), "close": "true" if close else "false"}
    return _answer(services, task_id, "PUT", key, "stdin", params=params, body=True)


@router.post(
    "/{key}/signal",
    summary="Signal a process",
    responses=errors.responses(*_MACHINE, *_BODY, NotFound, Conflict) | examples.answer({"signal": "TERM"}),
    openapi_extra=examples.SIGNAL_BODY,
)
async def signal_process(task_id: str, key: Key, request: Request, services: ServicesOf) -> SentSignal:
    """Send a signal to it and to all that it has started."""
    sent = await read_form(request, SentSignal)
    content = sent.model_dump_json().encode()
    find = services.machines.finder(task_id)
    async with services.hosts.asked(find, "processes", "POST", ("processes", key, "signal"), content=content):
        return sent


async def _kept(services: Services, task_id: str, key: str) -> ProcessRecord:
    """What the bucket has of a process whose machine is gone. Raises MachineUnavailable when nothing is kept."""
    record = await asyncio.to_thread(kept_record, services.bucket, TASKS.place(task_id), key)
    if record is None:
        # The sentence of a machine that is gone: nobody can say whether it had such a process.
        await services.machines.of(task_id)
        raise NotFound(f"Nothing is kept of a process '{key}'")
    return _ended(record)


def _ended(record: ProcessRecord) -> ProcessRecord:
    """A process whose machine is gone has ended, whether somebody saw how or not."""
    return record.model_copy(update={"state": "lost"}) if record.state == "running" else record


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


async def _asked(services: Services, task_id: str, parts: tuple[str, ...], body: str) -> ProcessRecord:
    async with services.hosts.asked(
        services.machines.finder(task_id), "processes", "POST", ("processes", *parts), content=body.encode()
    ) as response:
        return ProcessRecord.model_validate_json(await response.aread())


def _answer(
    services: Services,
    task_id: str,
    method: str,
    *parts: str,
    params: dict[str, str] | None = None,
    body: bool = False,
) -> HostAnswer:
    return HostAnswer(
        services.hosts,
        services.machines.finder(task_id),
        "processes",
        method,
        ("processes", *parts),
        params=params,
        body=body,
        told=_TOLD,
    )
