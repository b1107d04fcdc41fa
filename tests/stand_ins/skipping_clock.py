"""A Temporal server of one run whose clock skips: the real workflow, driven by hand, with steps that behave as told.

Hours pass in milliseconds, also while a step hangs, which is when no server's clock skips. It keeps to what Temporal
promises of activities: time limits, heartbeats, retries, cancellation, and that a worker that is away does nothing.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import temporalio.api.common.v1 as common
import temporalio.api.enums.v1 as enums
import temporalio.api.failure.v1 as failures
import temporalio.workflow
from temporalio.bridge.proto.workflow_activation import workflow_activation_pb2 as activation
from temporalio.common import Priority, TypedSearchAttributes
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import UnsandboxedWorkflowRunner, WorkflowInstance, WorkflowInstanceDetails

from workflows import names, steps
from workflows.runs.messages import TaskStatus, TaskSubmission
from workflows.runs.workflow import TaskWorkflow
from workflows.specs.manifest import Manifest

_BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
_OBEYS_WITHIN = 2.0


@dataclass(frozen=True)
class Act:
    """What one attempt of a step does: it answers or fails after ``takes`` seconds; with infinity, it hangs.

    ``obeys``: it ends when it is called off. ``fails`` is the code of its error.
    """

    answer: Any = None
    takes: float = 0.1
    fails: str | None = None
    final: bool = False
    obeys: bool = True


Behaviour = Callable[[Any, int], Act]


@dataclass
class _Activity:
    seq: int
    step: steps.Step[Any, Any]
    request: Any
    scheduled: Any
    began: float
    attempt: int = 0
    started: bool = False
    called_off: bool = False
    over: bool = False
    act: Act | None = None
    last_failure: Any = None
    epoch: int = 0  # one for each attempt and wait: what was planned for an earlier one is void


@dataclass
class SkippingClock:
    """One run. ``acts`` tells what attempts do, by the step's name; ``away`` when the host's worker is not there."""

    manifest: Manifest
    acts: dict[str, Behaviour]
    away: list[tuple[float, float]] = field(default_factory=list)
    now: float = 0.0
    ended_at: float | None = None
    memo: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[float, str, Any]] = field(default_factory=list)
    events: int = 3
    largest_payload: int = 0
    patches: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)
    unheard: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._plan: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._jobs: list[activation.WorkflowActivationJob] = []
        self._activities: dict[int, _Activity] = {}
        self._timers: set[int] = set()
        self._converter = pydantic_data_converter._new_payload_converter()
        self._result: TaskStatus | None = None
        self._answers: dict[str, Callable[[Any], None]] = {}
        definition = temporalio.workflow._Definition.must_from_class(TaskWorkflow)
        info = temporalio.workflow.Info(
            attempt=1,
            continued_run_id=None,
            cron_schedule=None,
            execution_timeout=None,
            first_execution_run_id="run",
            headers={},
            namespace="default",
            original_execution_run_id="run",
            parent=None,
            root=None,
            priority=Priority.default,
            raw_memo={},
            retry_policy=None,
            run_id="run",
            run_timeout=None,
            search_attributes={},
            start_time=_BEGIN,
            task_queue="shared",
            task_timeout=timedelta(seconds=10),
            typed_search_attributes=TypedSearchAttributes([]),
            workflow_id=names.RUNS.workflow_id("a"),
            workflow_start_time=_BEGIN,
            workflow_type=names.RUNS.type,
        )
        details = WorkflowInstanceDetails(
            payload_converter_factory=pydantic_data_converter._new_payload_converter,
            failure_converter_class=pydantic_data_converter.failure_converter_class,
            interceptor_classes=[],
            defn=definition,
            info=info,
            randomness_seed=1,
            extern_functions={"__temporal_assert_local_activity_valid": lambda _: None},
            disable_eager_activity_execution=True,
            worker_level_failure_exception_types=[],
            patch_activation_callback=None,
            last_completion_result=common.Payloads(),
            last_failure=None,
        )
        self._instance = asyncio.run(_created(details))
        self._instance.set_exception_handler(lambda _, context: self.unheard.append(context))  # type: ignore[attr-defined]
        start = activation.InitializeWorkflow(
            workflow_type=names.RUNS.type,
            workflow_id=names.RUNS.workflow_id("a"),
            arguments=self._converter.to_payloads([TaskSubmission(task_id="a", manifest=self.manifest)]),
        )
        self._jobs.append(activation.WorkflowActivationJob(initialize_workflow=start))

    # --- what comes from outside

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        """Plan something for a time of the run, in seconds from its beginning."""
        heapq.heappush(self._plan, (seconds, next(self._order), do))

    def signal(self, name: str, *payload: Any) -> None:
        """A signal, now."""
        self.events += 1
        job = activation.SignalWorkflow(signal_name=name, input=self._payloads(payload), identity="test")
        job.originating_event_id = self.events
        self._jobs.append(activation.WorkflowActivationJob(signal_workflow=job))

    def update(self, name: str, payload: Any, then: Callable[[Any], None] = lambda _: None) -> None:
        """An update, now; ``then`` is called with its answer."""
        ident = f"update-{next(self._order)}"
        self._answers[ident] = then
        job = activation.DoUpdate(id=ident, protocol_instance_id=ident, name=name, input=self._payloads([payload]))
        job.run_validator = True
        self.events += 2
        self._jobs.append(activation.WorkflowActivationJob(do_update=job))

    def finish(self, step: steps.Step[Any, Any], act: Act) -> None:
        """End the running attempts of a step, now, as ``act`` says."""
        for each in list(self._activities.values()):
            if each.step is step and each.started and not each.over:
                self._end_attempt(each, each.epoch, act)

    def status(self) -> TaskStatus:
        """The answer of the query ``status``, now."""
        job = activation.QueryWorkflow(query_id="q", query_type=names.STATUS)
        completion = self._activate([activation.WorkflowActivationJob(query_workflow=job)])
        (command,) = completion.successful.commands
        (status,) = self._converter.from_payloads([command.respond_to_query.succeeded.response], [TaskStatus])
        return status  # type: ignore[no-any-return]

    def run(self, most: float = 400 * 24 * 3600.0) -> TaskStatus:
        """Let the time pass until the run has ended; fails when that is later than ``most`` seconds."""
        while self._result is None:
            if self._jobs:
                jobs, self._jobs = self._jobs, []
                self._carry_out(self._activate(jobs))
                continue
            assert self._plan, f"the run waits for nothing that will come, after {self.now:.0f} s: {self.calls[-5:]}"
            self.now, _, do = heapq.heappop(self._plan)
            assert self.now <= most, f"the run has not ended after {most:.0f} s; it called {self.calls[-5:]}"
            do()
        self.ended_at = self.now
        gc.collect(1)  # an exception that nobody heard of is told when its task goes
        self._activate([activation.WorkflowActivationJob(remove_from_cache=activation.RemoveFromCache())])
        return self._result

    # --- the server

    def _payloads(self, values: Any) -> list[Any]:
        return list(self._converter.to_payloads(list(values))) if values else []

    def _activate(self, jobs: list[activation.WorkflowActivationJob]) -> Any:
        self.events += 3
        request = activation.WorkflowActivation(run_id="run", history_length=self.events, jobs=jobs)
        request.timestamp.FromDatetime(_BEGIN + timedelta(seconds=self.now))
        completion = self._instance.activate(request)
        assert not completion.HasField("failed"), completion.failed.failure
        return completion

    def _carry_out(self, completion: Any) -> None:  # noqa: C901, PLR0912 -- a branch for each kind of command
        for command in completion.successful.commands:
            kind = command.WhichOneof("variant")
            self.largest_payload = max(self.largest_payload, command.ByteSize())
            body = getattr(command, kind)
            self.events += 1
            match kind:
                case "start_timer":
                    self._timers.add(body.seq)
                    self._in(_seconds(body.start_to_fire_timeout), lambda seq=body.seq: self._fire(seq))
                case "cancel_timer":
                    self._timers.discard(body.seq)
                case "schedule_activity" | "schedule_local_activity":
                    self._schedule(body)
                case "request_cancel_activity" | "request_cancel_local_activity":
                    self._call_off(self._activities[body.seq])
                case "modify_workflow_properties":
                    for name, payload in body.upserted_memo.fields.items():
                        self.memo[name] = self._converter.from_payload(payload)
                case "set_patch_marker":
                    self.patches.add(body.patch_id)
                case "complete_workflow_execution":
                    self._result = self._converter.from_payload(body.result, TaskStatus)
                case "update_response":
                    if body.HasField("rejected"):
                        self.refusals.append(body.rejected.application_failure_info.type)
                    elif body.HasField("completed"):
                        self._answers[body.protocol_instance_id](self._converter.from_payload(body.completed))
                case "upsert_workflow_search_attributes":
                    pass
                case _:
                    raise AssertionError(f"the run does what it never should: {kind}")

    def _in(self, seconds: float, do: Callable[[], None]) -> None:
        if seconds != math.inf:
            self.at(self.now + seconds, do)

    def _fire(self, seq: int) -> None:
        if seq in self._timers:
            self._timers.discard(seq)
            self._jobs.append(activation.WorkflowActivationJob(fire_timer=activation.FireTimer(seq=seq)))

    def _schedule(self, body: Any) -> None:
        step = steps.BY_NAME[body.activity_type]
        (request,) = self._converter.from_payloads(list(body.arguments), [step.request])
        self.events += 2
        each = _Activity(body.seq, step, request, body, self.now)
        self._activities[body.seq] = each
        self._in(_seconds(body.schedule_to_close_timeout), lambda: self._time_out(each, "SCHEDULE_TO_CLOSE"))
        self._queue(each)

    def _queue(self, each: _Activity) -> None:
        each.attempt += 1
        each.epoch += 1
        each.started = False
        epoch = each.epoch
        if not _is_local(each):
            limit = _seconds(each.scheduled.schedule_to_start_timeout)
            self._in(limit, lambda: self._time_out(each, "SCHEDULE_TO_START", epoch, waiting=True))
        back = self._back_at(each)
        if back == self.now:
            self._take(each, epoch)
        elif back != math.inf:
            self.at(back, lambda: self._take(each, epoch))

    def _back_at(self, each: _Activity) -> float:
        """When a worker takes the step: those of the shared queue have other hosts."""
        if each.step.queue is steps.Queue.HOST:
            for begin, end in self.away:
                if begin <= self.now < end:
                    return end
        return self.now

    def _take(self, each: _Activity, epoch: int) -> None:
        if each.over or each.epoch != epoch:
            return
        each.started = True
        self.calls.append((self.now, each.step.name, each.request))
        act = each.act = self.acts.get(each.step.name, lambda _r, _n: Act())(each.request, each.attempt)
        self._in(act.takes, lambda: self._end_attempt(each, epoch, act))
        limit = _seconds(each.scheduled.start_to_close_timeout)
        self._in(limit, lambda: self._time_out(each, "START_TO_CLOSE", epoch, again=True))
        if each.step.queue is steps.Queue.HOST:
            for begin, _ in self.away:
                if begin > self.now:
                    # Its worker dies: nothing is heard of the attempt any more.
                    silence = begin - self.now + _seconds(each.scheduled.heartbeat_timeout)
                    self._in(silence, lambda: self._time_out(each, "HEARTBEAT", epoch, again=True))

    def _is_dead(self, each: _Activity) -> bool:
        return each.step.queue is steps.Queue.HOST and any(begin <= self.now < end for begin, end in self.away)

    def _end_attempt(self, each: _Activity, epoch: int, act: Act) -> None:
        if each.over or each.epoch != epoch or self._is_dead(each):
            return
        if act.fails is None:
            result = activation.ResolveActivity(seq=each.seq, is_local=_is_local(each))
            result.result.completed.result.CopyFrom(self._converter.to_payloads([act.answer])[0])
            self._resolve(each, result)
            return
        failure = failures.Failure(message=f"{each.step.name} failed")
        failure.application_failure_info.type = act.fails
        failure.application_failure_info.non_retryable = act.final
        self._fail_attempt(each, failure, again=not act.final)

    def _time_out(
        self, each: _Activity, kind: str, epoch: int | None = None, *, again: bool = False, waiting: bool = False
    ) -> None:
        if each.over or (epoch is not None and each.epoch != epoch) or (waiting and each.started):
            return
        failure = failures.Failure(message=f"{kind} of {each.step.name}")
        failure.timeout_failure_info.timeout_type = enums.TimeoutType.Value(f"TIMEOUT_TYPE_{kind}")
        self._fail_attempt(each, failure, again=again)

    def _fail_attempt(self, each: _Activity, failure: Any, *, again: bool) -> None:
        policy = each.scheduled.retry_policy
        backoff = min(
            _seconds(policy.initial_interval) * policy.backoff_coefficient ** min(each.attempt - 1, 50),
            _seconds(policy.maximum_interval),
        )
        deadline = each.began + _seconds(each.scheduled.schedule_to_close_timeout)
        exhausted = 0 < policy.maximum_attempts <= each.attempt
        if again and not exhausted and not each.called_off and not _is_local(each) and self.now + backoff < deadline:
            each.started = False
            each.epoch += 1
            each.last_failure = failure
            epoch = each.epoch
            self._in(backoff, lambda: None if each.over or each.epoch != epoch else self._queue(each))
            return
        result = activation.ResolveActivity(seq=each.seq, is_local=_is_local(each))
        outer = result.result.failed.failure
        self._wrap(each, outer)
        outer.cause.CopyFrom(failure)
        if each.last_failure is not None and failure.HasField("timeout_failure_info"):
            outer.cause.cause.CopyFrom(each.last_failure)
        self._resolve(each, result)

    def _call_off(self, each: _Activity) -> None:
        if each.over:
            return
        each.called_off = True
        if not each.started:
            self._cancelled(each)
        elif each.act is not None and each.act.obeys:
            self._in(_OBEYS_WITHIN, lambda: None if each.over or self._is_dead(each) else self._cancelled(each))

    def _cancelled(self, each: _Activity) -> None:
        result = activation.ResolveActivity(seq=each.seq, is_local=_is_local(each))
        outer = result.result.cancelled.failure
        self._wrap(each, outer)
        outer.cause.message = "called off"
        outer.cause.canceled_failure_info.SetInParent()
        self._resolve(each, result)

    def _wrap(self, each: _Activity, outer: Any) -> None:
        outer.message = "activity error"
        outer.activity_failure_info.activity_id = str(each.seq)
        outer.activity_failure_info.activity_type.name = each.step.name

    def _resolve(self, each: _Activity, result: Any) -> None:
        each.over = True
        self._jobs.append(activation.WorkflowActivationJob(resolve_activity=result))


async def _created(details: WorkflowInstanceDetails) -> WorkflowInstance:
    """The instance, which is made on a loop and has one of its own from then on."""
    return UnsandboxedWorkflowRunner().create_instance(details)


def _is_local(each: _Activity) -> bool:
    return each.scheduled.DESCRIPTOR.name == "ScheduleLocalActivity"


def _seconds(duration: Any) -> float:
    """A limit in seconds; infinity when there is none."""
    return duration.ToTimedelta().total_seconds() or math.inf
