"""Waiting, within limits, for what this process or a server comes to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle

PATIENCE = 30.0
_POLL_SECONDS = 0.02

Run = WorkflowHandle[Any, Any]


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, *, patience: float = PATIENCE) -> None:
    """Wait until a condition holds; after ``patience`` seconds, fail and tell ``what`` it was."""
    try:
        async with asyncio.timeout(patience):
            while True:
                held = condition()
                if held if isinstance(held, bool) else await held:
                    return
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise AssertionError(f"waited {patience:.0f} s for {what}") from None


async def has_event(run: Run, wanted: EventType.ValueType) -> bool:
    """Whether the run's history has an event of a kind."""
    return any(event.event_type == wanted for event in (await run.fetch_history()).events)


async def at_rest(run: Run) -> bool:
    """Whether the workflow has taken in all that came, and asks for nothing more than it did before."""
    return (await run.fetch_history()).events[-1].event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
