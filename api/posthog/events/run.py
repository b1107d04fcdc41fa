"""What Taskyard itself tells of a run in its log, as notifications of the run's session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from api.posthog.events import tools
from api.posthog.events.bodies import Body, Json, console, extension, object_of, one_line, text_block, text_of, update
from workflows.runs.states import TaskState

# The states that prepare a run for its agent, in their order; clients show them as the steps of one card.
_PREPARING = (TaskState.STAGING, TaskState.PROVISIONING, TaskState.READY)
# How loud each kind of event is, for those that are lines for people and nothing else.
_LEVELS = {
    "warning": "warn",
    "note": "warn",
    "verdict": "error",
    "network": "debug",
    "access": "debug",
}
_OPTIONS_MOST = 50


def run_event(event: Json, entry_id: int, run_id: str, task_id: str) -> Iterator[Body]:
    """What one event of the run's log tells. One of a kind that is not known is a line for people."""
    kind = text_of(event.get("type")) or ""
    message = text_of(event.get("message")) or ""
    told = _EVENTS.get(kind)
    if told is not None:
        yield from told(event, message, entry_id, run_id, task_id)
    elif message:
        yield console(_LEVELS.get(kind, "info"), message)


def _state_change(event: Json, message: str, _: int, run_id: str, task_id: str) -> Iterator[Body]:
    try:
        state = TaskState(text_of(event.get("state")) or "")
    except ValueError:
        if message:
            yield console("info", message)
        return
    if state in _PREPARING:
        at = _PREPARING.index(state)
        yield from (_step(run_id, before, "completed") for before in _PREPARING[max(0, at - 1) : at])
        yield _step(run_id, state, "in_progress", message)
    elif state is TaskState.RUNNING:
        yield _step(run_id, TaskState.READY, "completed")
        yield extension("run_started", runId=run_id, taskId=task_id)
    elif state is TaskState.COMPLETING:
        yield _step(run_id, state, "in_progress", message, phase="finish")
    elif state.terminal:
        failed = state in {TaskState.FAILED, TaskState.FAILED_PRESERVED}
        yield _step(run_id, TaskState.COMPLETING, "failed" if failed else "completed", phase="finish")
        if failed:
            yield extension("error", source="run", stopReason="error", message=message, error=message)
        status = "failed" if failed else state.value
        yield extension("task_complete", runId=run_id, taskId=task_id, status=status, message=message)
    elif message:
        yield console("warn", message)


_LABELS = {
    TaskState.STAGING: "Getting the repository",
    TaskState.PROVISIONING: "Starting the machine",
    TaskState.READY: "Starting the agent",
    TaskState.COMPLETING: "Collecting artifacts",
}


def _step(run_id: str, state: TaskState, status: str, message: str = "", *, phase: str = "setup") -> Body:
    return extension(
        "progress",
        step=state.value,
        status=status,
        label=_LABELS[state],
        group=f"{phase}:{run_id}",
        detail=one_line(message) or None,
    )


def _user_message(event: Json, message: str, entry_id: int, _run: str, _task: str) -> Iterator[Body]:
    # Clients show a prompt by the request that brings it, and others read the conversation from the updates alone.
    message_id = text_of(event.get("message_id"))
    meta = None if message_id is None else {"messageId": message_id}
    prompt: Json = {"prompt": [text_block(message)]}
    yield Body("session/prompt", prompt if meta is None else prompt | {"_meta": meta}, request=entry_id)
    yield update("user_message", content=text_block(message), _meta=meta)


def _permission_request(event: Json, message: str, _: int, _run: str, _task: str) -> Iterator[Body]:
    request_id = text_of(event.get("request_id"))
    tool = text_of(event.get("tool")) or ""
    if request_id is None:
        if message:
            yield console("warn", message)
        return
    call_id = text_of(event.get("tool_use_id")) or request_id
    call = tools.described(tool, call_id, object_of(event.get("input")))
    call |= {"status": "pending", "_meta": {"claudeCode": {"toolName": tool}}}
    question: Json = {"requestId": request_id, "toolCall": call, "options": _options(event.get("options"))}
    yield Body(raw={"type": "permission_request", **question})
    yield extension("permission_request", **question)


def _permission_resolved(event: Json, message: str, _: int, _run: str, _task: str) -> Iterator[Body]:
    request_id = text_of(event.get("request_id"))
    if request_id is not None:
        decision = text_of(event.get("decision"))
        yield extension("permission_resolved", requestId=request_id, optionId=decision, message=message or None)
    elif message:
        yield console("info", message)


def _options(given: Any) -> list[Json]:
    """The answers that may be given. Those of an event are objects with ``id`` and ``name``, or ids alone."""
    options = []
    for option in (given if isinstance(given, list) else [])[:_OPTIONS_MOST]:
        about = {"id": option} if isinstance(option, str) else object_of(option)
        option_id = text_of(about.get("id"))
        if option_id is not None:
            name = text_of(about.get("name")) or option_id.replace("_", " ").capitalize()
            kind = text_of(about.get("kind")) or _kind(option_id)
            options.append({"optionId": option_id, "name": name, "kind": kind})
    return options or [
        {"optionId": "allow", "name": "Allow", "kind": "allow_once"},
        {"optionId": "deny", "name": "Deny", "kind": "reject_once"},
    ]


def _kind(option_id: str) -> str:
    allows = "reject" if option_id.startswith(("deny", "reject")) else "allow"
    return f"{allows}_{'always' if 'always' in option_id else 'once'}"


_EVENTS: dict[str, Callable[[Json, str, int, str, str], Iterator[Body]]] = {
    "state_change": _state_change,
    "user_message": _user_message,
    "permission_request": _permission_request,
    "permission_resolved": _permission_resolved,
}
