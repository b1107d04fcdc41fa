"""Which workers poll the shared task queue now; Temporal itself still names those that left within five minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

from api.temporal.client import RPC_LIMIT, Engine

# A worker asks anew within a minute of its last question, whatever comes.
AWAY_SECONDS = 90.0


class Pollers:
    """The workers that have polled within ``AWAY_SECONDS``, by Temporal's clock.

    What that clock shows is learned from the polls: it shows at least the latest time it has given to one of them, and
    what has passed here since.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._polls: dict[str, float] = {}
        self._ahead: float | None = None

    async def count(self) -> int:
        """How many there are. Raises EngineUnavailable."""
        client = await self._engine.client()
        request = DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=self._engine.task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        with self._engine.failures():
            answer = await client.workflow_service.describe_task_queue(request, timeout=RPC_LIMIT)
        polls: dict[str, float] = {}
        for poller in answer.pollers:
            at = poller.last_access_time.ToNanoseconds() / 1e9
            polls[poller.identity] = max(at, polls.get(poller.identity, at))
        return self.take(polls)

    def take(self, polls: Mapping[str, float]) -> int:
        """How many of these are still there. Each has the time of its last poll, in unix seconds of Temporal."""
        now = self._clock()
        if any(at < self._polls.get(identity, at) for identity, at in polls.items()):
            # Temporal's clock was put back.
            self._ahead = None
        ahead = [at - now for at in polls.values()] + ([] if self._ahead is None else [self._ahead])
        self._ahead = max(ahead, default=None)
        self._polls = dict(polls)
        return sum(now + (self._ahead or 0.0) - at <= AWAY_SECONDS for at in polls.values())
