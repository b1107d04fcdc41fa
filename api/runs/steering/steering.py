"""Steering a run's agent: interrupt it, answer what it asks, change its model or mode, look at its queue and clear it.

Nothing is told as done that the agent has not confirmed: what it does not confirm in time is TimedOut, and may be done
yet. All of it raises TaskNotFound and TaskAlreadyTerminal; SessionClosed when the agent has ended; Conflict when it
does not run yet, sleeps, or refuses; RateLimitExceeded when it was steered too often; ServiceUnavailable.
"""

from __future__ import annotations

from api.runs.core import Core, check_text
from foundation.errors import InvalidParameter
from workflows import names
from workflows.runs.steering.messages import (
    REQUEST_ID_CHARS,
    Cleared,
    ClearRequest,
    Configuration,
    Configured,
    Interrupted,
    InterruptRequest,
    PermissionAnswer,
    PermissionAnswered,
    PermissionRequest,
    WaitingMessages,
)


async def interrupt(core: Core, run_id: str) -> Interrupted:
    """Stop what the agent does now. The run goes on: its agent waits for a message, also one that is headless."""
    return await core.tell(run_id, names.INTERRUPT_TURN, InterruptRequest(), Interrupted)


async def permission_requests(core: Core, run_id: str) -> list[PermissionRequest]:
    """What the agent asks and waits for, oldest first. Raises TaskNotFound alone: one that has ended asks nothing."""
    return (await core.status(run_id)).status.permission_requests


async def answer(core: Core, run_id: str, given: PermissionAnswer) -> PermissionAnswered:
    """Answer what the agent asks, once for each request; the same answer again is a repetition.

    One that the machine has not confirmed (ServiceUnavailable, TimedOut) stands, and is sent again while it is awaited.
    Raises Conflict also for a request that is not open or was answered otherwise, InvalidParameter for answers that do
    not fit its questions.
    """
    if not 0 < len(given.request_id) <= REQUEST_ID_CHARS:
        raise InvalidParameter("'request_id' is no id of a request.", field="request_id")
    check_text("message", given.message or "")
    for question, text in given.answers.items():
        check_text("answers", question + text)
    return await core.tell(run_id, names.ANSWER_REQUEST, given, PermissionAnswered)


async def configure(
    core: Core, run_id: str, *, model: str | None = None, permission_mode: str | None = None
) -> Configured:
    """Change the agent's model or permission mode, from its next request to the model on.

    Raises InvalidParameter for what is no model's name or mode, Conflict for a mode of a run that asks nobody.
    """
    check_text("model", model or "")
    check_text("permission_mode", permission_mode or "")
    wanted = Configuration(model=model, permission_mode=permission_mode)
    return await core.tell(run_id, names.CONFIGURE_AGENT, wanted, Configured)


async def messages(core: Core, run_id: str) -> WaitingMessages:
    """The messages that the agent has not got yet. Raises ServiceUnavailable when no worker answers."""
    return await core.ask(run_id, names.MESSAGES, WaitingMessages)


async def clear_messages(core: Core, run_id: str) -> Cleared:
    """Drop the messages that wait. One whose delivery is under way is named, and may arrive."""
    return await core.tell(run_id, names.CLEAR_WAITING, ClearRequest(), Cleared)
