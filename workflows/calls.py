"""How a workflow calls its steps: on which queue, within which limits, and how it calls one off."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType
from temporalio.exceptions import TimeoutError as StepTimeout

from workflows import steps
from workflows.messages import Lease, Message
from workflows.steps import Queue, Step

In = TypeVar("In", bound=Message)
Out = TypeVar("Out", bound=Message | None)


class Calls:
    """The steps of one workflow. ``away``: a step has found no worker of the lease's host.

    ``hurried`` says whether the work is not wanted any more, and its host is not to be waited for.
    """

    def __init__(self, hurried: Callable[[], bool]) -> None:
        self.lease: Lease | None = None
        self.away = False
        self._hurried = hurried

    def start(
        self,
        step: Step[In, Out],
        request: In,
        summary: str,
        limit: timedelta | None = None,
        wait: timedelta | None = None,
    ) -> workflow.ActivityHandle[Out]:
        """Hand a step to its queue. ``limit`` is in place of the step's bound, ``wait`` in place of its own."""
        queue = None
        if step.queue is Queue.HOST:
            if self.lease is None:
                raise ApplicationError(f"step {step.name} before a lease", non_retryable=True)
            queue = (self.lease.agent_queue if step.follows else None) or self.lease.task_queue
        wait = wait or step.wait
        if wait is not None and self._hurried():
            wait = min(wait, steps.ABSENCE)
        if limit is None and step.bound is not None:
            limit = step.bound + (wait or timedelta())
        handle: workflow.ActivityHandle[Out] = workflow.start_activity(
            step.name,
            request,
            result_type=step.result,
            task_queue=queue,
            start_to_close_timeout=step.limit,
            schedule_to_close_timeout=limit,
            schedule_to_start_timeout=wait,
            heartbeat_timeout=step.heartbeat,
            retry_policy=step.retry,
            # A cancelled attempt reports when it has stopped: nothing of it runs on beside the tear-down.
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=summary,
        )
        # A step that was called off may fail when nobody awaits it any more, which asyncio would log as an error.
        handle.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        return handle

    @staticmethod
    def start_at_once(step: Step[In, Out], request: In, summary: str) -> workflow.ActivityHandle[Out]:
        """One short attempt within the workflow's own task: no queue, no task of its own, no wait for one."""
        return workflow.start_local_activity(
            step.name,
            request,
            result_type=step.result,
            schedule_to_close_timeout=step.at_once,
            retry_policy=RetryPolicy(maximum_attempts=1),
            summary=summary,
        )

    async def attempt(self, step: Step[In, Out], request: In, summary: str) -> bool:
        """Run a step whose failure ends nothing. Whether it succeeded."""
        try:
            await self.start(step, request, summary)
        except ActivityError as error:
            workflow.logger.warning("%s: %s", step.name, error.cause)
            self.note_failure(step, error)
            return False
        return True

    def note_failure(self, step: Step[In, Out], error: ActivityError) -> None:
        """Set ``away`` when a step failed because its host is."""
        self.away = self.away or (step.queue is Queue.HOST and host_is_away(error))


async def is_done(handle: workflow.ActivityHandle[Any], limit: timedelta) -> bool:
    """Whether a step ends within a limit. It may have failed."""
    try:
        await workflow.wait_condition(handle.done, timeout=limit)
    except TimeoutError:
        return False
    return True


async def called_off(handle: workflow.ActivityHandle[Any]) -> bool:
    """Call a step off. Whether it has stopped in time; one that has not is awaited no more."""
    handle.cancel()
    return await is_done(handle, steps.SETTLE)


def host_is_away(error: ActivityError) -> bool:
    """Whether no worker of its host began a step in time, or the last that did sent no more heartbeats."""
    cause = error.cause
    if not isinstance(cause, StepTimeout):
        return False
    # The server keeps the failure of the last attempt before the time was over.
    return cause.type is TimeoutType.SCHEDULE_TO_START or isinstance(cause.cause, StepTimeout)
