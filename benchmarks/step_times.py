"""Where a run's time goes, from its history in Temporal: each step from its start to its end, and what lies between."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from temporalio.api.history.v1 import HistoryEvent

from foundation.engine import connect_engine
from foundation.settings import Settings
from workflows import steps
from workflows.names import RUNS

# Those that a run makes beside another step.
_BESIDE = (steps.CLOSE.name, steps.DELIVER.name, steps.STOP_AGENT.name)
# How a history names a step that was made within the workflow's own task.
_MADE_AT_ONCE = "core_local_activity"


@dataclass(frozen=True)
class StepTime:
    """One step that a run waited for; unix times of its last attempt's start and of its end."""

    name: str
    began: float
    ended: float


async def step_times(settings: Settings, task_id: str) -> list[StepTime]:
    """The steps of a run one after another, as far as they have succeeded; waits for the run's end."""
    client = await connect_engine(settings)
    run = client.get_workflow_handle(RUNS.workflow_id(task_id))
    await run.result()
    history = await run.fetch_history()
    return list(read_steps(history.events))


def read_steps(events: Iterable[HistoryEvent]) -> Iterator[StepTime]:
    """The same from the events of a history."""
    by_id: dict[int, HistoryEvent] = {}
    for event in events:
        by_id[event.event_id] = event
        made = event.marker_recorded_event_attributes
        if made.marker_name == _MADE_AT_ONCE and not made.HasField("failure"):
            told = json.loads(made.details["data"].payloads[0].data)
            scheduled = told["original_schedule_time"]
            yield StepTime(told["activity_type"], scheduled["seconds"] + scheduled["nanos"] / 1e9, _unix(event))
            continue
        done = event.activity_task_completed_event_attributes
        if not done.started_event_id:
            continue
        name = by_id[done.scheduled_event_id].activity_task_scheduled_event_attributes.activity_type.name
        if name not in _BESIDE:
            yield StepTime(name, _unix(by_id[done.started_event_id]), _unix(event))


def _unix(event: HistoryEvent) -> float:
    return event.event_time.ToNanoseconds() / 1e9
