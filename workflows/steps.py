"""The steps of workflows by name: their types, queue, time limits and retry policies, in one table.

Activities register under these names; workflows call them through ``Step``. Nothing else names an activity. ``OF`` says
which steps each kind of workflow has.

Every step of a run ends, whatever guest, host, bucket and client do. ``wait`` and ``bound`` are enforced by Temporal:

    step        may wait for its host   then takes   all in all, at most
    RESERVE     -                       -            until there is room, or the run is cancelled (then 30 s)
    STAGE       HOST_PATIENCE           -            lifecycle.stage_timeout
    PROVISION   HOST_PATIENCE           -            lifecycle.provision_timeout
    SECRETS     HOST_PATIENCE           5 min        20 min
    RUN_AGENT   HOST_PATIENCE           -            lifecycle.timeout
    DELIVER     HOST_PATIENCE           10 min       25 min; the run goes on without the message then
    STEER       HOST_PATIENCE           10 min       25 min; who has asked for it is told then
    CLOSE       HOST_PATIENCE           10 min       25 min; the agent is stopped then
    STOP_AGENT  HOST_PATIENCE           5 min        20 min; the machine is ended from its host then
    NETWORK     HOST_PATIENCE           5 min        20 min; the change is refused then
    PAUSE       HOST_PATIENCE           30 min       45 min; the run ends over its budget then
    RESUME      HOST_PATIENCE           24 h         24 h 15 min; a host that has no room by then ends the run
    COLLECT     HOST_PATIENCE           1 h          1 h 15 min; a forced cancel calls it off
    PUSH        HOST_PATIENCE           20 min       35 min; the run ends without the push then
    RELEASE     ABSENCE                 10 min       10 min 30 s; the sweeper tears the machine down then
      preserve  HOST_PATIENCE           10 min       25 min
    FINISH      -                       24 h         24 h; the run shows its last state from the beginning of it

A local run has one step, FINISH_LOCAL, which is bounded as FINISH is.

Between PAUSE and RESUME, a run waits for a decision for lifecycle.decision_timeout, and its agent's own time stands
still.

An answer that STEER could not hand over is tried again, hourly at last, for as long as the agent waits for it.

What comes from outside is bounded too (workflows/history.py): Temporal takes 2,000 updates, 51,200 events and 50 MiB
of one history. At 1,000 updates of whatever sender nothing more is told to a run than its end, at 1,500 clients are
refused every update, at 1,700 messages, and at 1,900 it ends itself in order; its follower's updates count, and are
never refused. Events and bytes have shares alike. Local runs and parent tasks begin a new history at 1,000.

A cancelled run waits for its host for ABSENCE only. Nothing more is asked of a host that stayed away; its sweeper finds
the machine. A step that is called off has SETTLE to report that it has stopped, and is awaited no longer than that.

An agent that is to end has 14 min, beside the wait for its host: STOP_AGENT (5 min), REPORT for its follower to report
the end, the end of its machine from the host (5 min) when it does not, and SETTLE twice, before and after the follower
is called off. Whatever comes of it, the run goes on to COLLECT with the cause that it had before the stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Generic, TypeVar

from temporalio.common import RetryPolicy

from workflows.messages import Lease, Message
from workflows.names import LOCAL_RUNS, PARENTS, RUNS, WorkflowKind
from workflows.runs.messages import Pushed
from workflows.runs.requests import (
    AgentRequest,
    AgentResult,
    CloseRequest,
    CollectRequest,
    CollectResult,
    DeliverRequest,
    FinishRequest,
    PauseRequest,
    PauseResult,
    ProvisionRequest,
    ProvisionResult,
    PushRequest,
    ReleaseRequest,
    ReleaseResult,
    ReserveRequest,
    ResumeRequest,
    SecretsRequest,
    SecretsResult,
    SetNetworkRequest,
    StageRequest,
    StageResult,
    SteerRequest,
    StopAgentRequest,
)
from workflows.told.messages import FinishLocalRequest

In = TypeVar("In", bound=Message)
Out = TypeVar("Out", bound=Message | None)


class Queue(Enum):
    """Who runs a step: any worker, or the worker of the host that holds the lease."""

    SHARED = "shared"
    HOST = "host"


@dataclass(frozen=True)
class Step(Generic[In, Out]):
    """One activity as a workflow sees it.

    ``limit`` is the start-to-close time limit of one attempt, ``heartbeat`` the longest silence of a live attempt.
    ``wait`` limits how long a step may wait for its host's worker (schedule-to-start), ``bound`` all of its attempts
    beside that wait (schedule-to-close). ``at_once`` limits a first attempt that the worker makes within the workflow's
    own task, as a local activity, before the step goes to a queue. ``follows`` marks the one that lasts as long as the
    agent.
    """

    name: str
    request: type[In]
    result: type[Out] | None
    queue: Queue
    limit: timedelta
    retry: RetryPolicy
    heartbeat: timedelta | None = None
    wait: timedelta | None = None
    bound: timedelta | None = None
    at_once: timedelta | None = None
    follows: bool = False


def _retry(first: float, most: float, attempts: int) -> RetryPolicy:
    return RetryPolicy(
        initial_interval=timedelta(seconds=first),
        backoff_coefficient=2.0,
        maximum_interval=timedelta(seconds=most),
        maximum_attempts=attempts,
    )


# A host whose worker stays away longer than this has lost the run's machine as far as the run is concerned.
HOST_PATIENCE = timedelta(minutes=15)
# The same for a run that is not wanted any more: long enough for a worker that is being started anew.
ABSENCE = timedelta(seconds=30)
# What the follower of an agent that was stopped may take to write the rest of its output.
REPORT = timedelta(minutes=2)
# What an attempt that was called off may take to stop: longer than a dead worker is taken for a living one.
SETTLE = timedelta(seconds=45)
# What a machine that is to go on may wait for room on its host, the only one that has it.
ROOM_PATIENCE = timedelta(hours=24)
_BEAT = timedelta(seconds=30)

# Unlimited: a full fleet is no fault. The activity itself sets the delay until the next look.
# The worker that has the run in hand looks at its own host first; any host may take a run that it has no room for.
RESERVE = Step(
    "reserve_host",
    ReserveRequest,
    Lease,
    Queue.SHARED,
    limit=timedelta(seconds=30),
    retry=_retry(2, 30, 0),
    at_once=timedelta(seconds=5),
)
# Unreachable servers are tried for at most a minute: attempts at 0, 5 and 15 s, each bounded by git's own limits.
STAGE = Step(
    "stage_repository",
    StageRequest,
    StageResult,
    Queue.HOST,
    limit=timedelta(hours=2),
    retry=_retry(5, 15, 3),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
)
PROVISION = Step(
    "provision_machine",
    ProvisionRequest,
    ProvisionResult,
    Queue.HOST,
    limit=timedelta(hours=2),
    retry=_retry(2, 10, 3),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
)
SECRETS = Step(
    "inject_secrets",
    SecretsRequest,
    SecretsResult,
    Queue.HOST,
    limit=timedelta(minutes=2),
    retry=_retry(1, 10, 5),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    bound=timedelta(minutes=5),
)
# Retried without limit in count: a new attempt re-attaches to the agent. The run's own timeout ends it.
RUN_AGENT = Step(
    "run_agent",
    AgentRequest,
    AgentResult,
    Queue.HOST,
    limit=timedelta(hours=169),
    retry=_retry(1, 15, 0),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    follows=True,
)
STOP_AGENT: Step[StopAgentRequest, None] = Step(
    "stop_agent",
    StopAgentRequest,
    None,
    Queue.HOST,
    limit=timedelta(seconds=100),
    retry=_retry(1, 10, 3),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    bound=timedelta(minutes=5),
)
# Tried for some minutes: a guest may be busy, and a message is not to be lost.
DELIVER: Step[DeliverRequest, None] = Step(
    "deliver_message",
    DeliverRequest,
    None,
    Queue.HOST,
    limit=timedelta(minutes=1),
    retry=_retry(1, 30, 10),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    bound=timedelta(minutes=10),
)
STEER: Step[SteerRequest, None] = Step(
    "steer_agent",
    SteerRequest,
    None,
    Queue.HOST,
    limit=timedelta(minutes=1),
    retry=_retry(1, 30, 10),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    bound=timedelta(minutes=10),
)
CLOSE: Step[CloseRequest, None] = Step(
    "close_session",
    CloseRequest,
    None,
    Queue.HOST,
    limit=timedelta(minutes=1),
    retry=_retry(1, 30, 10),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    bound=timedelta(minutes=10),
)
NETWORK: Step[SetNetworkRequest, None] = Step(
    "set_network",
    SetNetworkRequest,
    None,
    Queue.HOST,
    limit=timedelta(minutes=1),
    retry=_retry(1, 30, 10),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    bound=timedelta(minutes=5),
)
# A guest of many GB is written to a slow disk in minutes. An attempt that hangs is not one whose host is away: its own
# limit ends neither this step nor the next.
PAUSE = Step(
    "pause_machine",
    PauseRequest,
    PauseResult,
    Queue.HOST,
    limit=HOST_PATIENCE + timedelta(minutes=30),
    retry=_retry(2, 30, 5),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    bound=timedelta(minutes=30),
)
# A full host is no fault: the activity itself sets the delay until the next look.
RESUME: Step[ResumeRequest, None] = Step(
    "resume_machine",
    ResumeRequest,
    None,
    Queue.HOST,
    limit=HOST_PATIENCE + ROOM_PATIENCE,
    retry=_retry(2, 30, 0),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    bound=ROOM_PATIENCE,
)
COLLECT = Step(
    "collect_artifacts",
    CollectRequest,
    CollectResult,
    Queue.HOST,
    limit=timedelta(minutes=30),
    retry=_retry(2, 30, 5),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    bound=timedelta(hours=1),
)
# What can be tried again is told apart by the step itself, which answers with what was done when it may not try again.
PUSH = Step(
    "push_changes",
    PushRequest,
    Pushed,
    Queue.HOST,
    limit=timedelta(minutes=15),
    retry=_retry(2, 30, 5),
    heartbeat=_BEAT,
    wait=HOST_PATIENCE,
    bound=timedelta(minutes=20),
)
# The sweeper of a host that is away tears the machine down when it is back: only a machine to be kept is waited for.
RELEASE = Step(
    "release_machine",
    ReleaseRequest,
    ReleaseResult,
    Queue.HOST,
    limit=timedelta(minutes=2),
    retry=_retry(1, 30, 10),
    heartbeat=_BEAT,
    wait=ABSENCE,
    bound=timedelta(minutes=10),
)
# The log of a long and chatty run takes minutes to be merged. A bucket may be away for a day: meanwhile the run shows
# how it ended, by what Temporal keeps of it.
FINISH: Step[FinishRequest, None] = Step(
    "finish_run",
    FinishRequest,
    None,
    Queue.SHARED,
    limit=timedelta(minutes=30),
    retry=_retry(1, 30, 0),
    heartbeat=_BEAT,
    bound=timedelta(hours=24),
)

# The same of a local run, which has no other step.
FINISH_LOCAL: Step[FinishLocalRequest, None] = Step(
    "finish_local_run",
    FinishLocalRequest,
    None,
    Queue.SHARED,
    limit=timedelta(minutes=30),
    retry=_retry(1, 30, 0),
    heartbeat=_BEAT,
    bound=timedelta(hours=24),
)

# A step that several kinds of workflow have stands in the row of each.
OF: dict[WorkflowKind, tuple[Step[Any, Any], ...]] = {
    RUNS: (
        RESERVE,
        STAGE,
        PROVISION,
        SECRETS,
        RUN_AGENT,
        DELIVER,
        STEER,
        CLOSE,
        STOP_AGENT,
        NETWORK,
        PAUSE,
        RESUME,
        COLLECT,
        PUSH,
        RELEASE,
        FINISH,
    ),
    # A parent task only waits for changes.
    PARENTS: (),
    LOCAL_RUNS: (FINISH_LOCAL,),
}
BY_NAME: dict[str, Step[Any, Any]] = {step.name: step for row in OF.values() for step in row}
