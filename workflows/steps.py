"""The steps of a task run by name: their types, queue, time limits and retry policies, in one table.

Activities register under these names; the workflow calls them through ``Step``. Nothing else names an activity.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Generic, TypeVar

from temporalio.common import RetryPolicy

from workflows.messages import (
    AgentRequest,
    AgentResult,
    CloseRequest,
    CollectRequest,
    CollectResult,
    DeliverRequest,
    FinishRequest,
    Lease,
    Message,
    ProvisionRequest,
    ProvisionResult,
    ReleaseRequest,
    ReleaseResult,
    ReserveRequest,
    SecretsRequest,
    SecretsResult,
    StageRequest,
    StageResult,
    StopAgentRequest,
)

In = TypeVar("In", bound=Message)
Out = TypeVar("Out", bound=Message | None)


class Queue(Enum):
    """Who runs a step: any worker, or the worker of the host that holds the lease."""

    SHARED = "shared"
    HOST = "host"


@dataclass(frozen=True)
class Step(Generic[In, Out]):
    """One activity as the workflow sees it.

    ``limit`` is the start-to-close time limit of one attempt, ``heartbeat`` the longest silence of a live attempt.
    ``wait`` limits how long a step may wait for its host's worker (schedule-to-start). ``at_once`` limits a first
    attempt that the worker makes within the workflow's own task, as a local activity, before the step goes to a queue.
    """

    name: str
    request: type[In]
    result: type[Out] | None
    queue: Queue
    limit: timedelta
    retry: RetryPolicy
    heartbeat: timedelta | None = None
    wait: timedelta | None = None
    at_once: timedelta | None = None


def _retry(first: float, most: float, attempts: int) -> RetryPolicy:
    return RetryPolicy(
        initial_interval=timedelta(seconds=first),
        backoff_coefficient=2.0,
        maximum_interval=timedelta(seconds=most),
        maximum_attempts=attempts,
    )


# A host whose worker stays away longer than this has lost the run's machine as far as the run is concerned.
HOST_PATIENCE = timedelta(minutes=15)
_BEAT = timedelta(seconds=30)

# Unlimited: a full fleet is no fault. The activity itself sets the delay until the next look.
# The worker that has the run in hand looks at its own host first; any host may take a run that it has no room for.
RESERVE = Step(
    "reserve_host",
    ReserveRequest,
    Lease,
    Queue.SHARED,
    timedelta(seconds=30),
    _retry(2, 30, 0),
    at_once=timedelta(seconds=5),
)
# Unreachable servers are tried for at most a minute: attempts at 0, 5 and 15 s, each bounded by git's own limits.
STAGE = Step(
    "stage_repository",
    StageRequest,
    StageResult,
    Queue.HOST,
    timedelta(hours=2),
    _retry(5, 15, 3),
    _BEAT,
    HOST_PATIENCE,
)
PROVISION = Step(
    "provision_machine",
    ProvisionRequest,
    ProvisionResult,
    Queue.HOST,
    timedelta(hours=2),
    _retry(2, 10, 3),
    _BEAT,
    HOST_PATIENCE,
)
SECRETS = Step(
    "inject_secrets",
    SecretsRequest,
    SecretsResult,
    Queue.HOST,
    timedelta(minutes=2),
    _retry(1, 10, 5),
    _BEAT,
    HOST_PATIENCE,
)
# Retried without limit in count: a new attempt re-attaches to the agent, and the run's own timeout ends it.
RUN_AGENT = Step(
    "run_agent", AgentRequest, AgentResult, Queue.HOST, timedelta(hours=169), _retry(1, 15, 0), _BEAT, HOST_PATIENCE
)
STOP_AGENT: Step[StopAgentRequest, None] = Step(
    "stop_agent", StopAgentRequest, None, Queue.HOST, timedelta(minutes=2), _retry(1, 10, 5), _BEAT, HOST_PATIENCE
)
DELIVER: Step[DeliverRequest, None] = Step(
    "deliver_message", DeliverRequest, None, Queue.HOST, timedelta(minutes=1), _retry(1, 10, 5), _BEAT, HOST_PATIENCE
)
COLLECT = Step(
    "collect_artifacts",
    CollectRequest,
    CollectResult,
    Queue.HOST,
    timedelta(minutes=30),
    _retry(2, 30, 5),
    _BEAT,
    HOST_PATIENCE,
)
RELEASE = Step(
    "release_machine",
    ReleaseRequest,
    ReleaseResult,
    Queue.HOST,
    timedelta(minutes=2),
    _retry(1, 30, 10),
    _BEAT,
    HOST_PATIENCE,
)
CLOSE: Step[CloseRequest, None] = Step(
    "close_session", CloseRequest, None, Queue.HOST, timedelta(minutes=1), _retry(1, 10, 5), _BEAT, HOST_PATIENCE
)
# The log of a long and chatty run takes minutes to be merged.
FINISH: Step[FinishRequest, None] = Step(
    "finish_run", FinishRequest, None, Queue.SHARED, timedelta(minutes=30), _retry(1, 30, 0), _BEAT
)
