"""What an answer of the API may show, by what Temporal shows before it is asked for and after it has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus

from workflows.names import RUNS, STATE_KEY
from workflows.runs.states import TaskState

Truth = Mapping[str, TaskState]

_RANK = {state: rank for rank, state in enumerate(TaskState)}
_CLOSED_OUTSIDE = {
    WorkflowExecutionStatus.CANCELED: TaskState.CANCELLED,
    WorkflowExecutionStatus.TERMINATED: TaskState.FAILED,
    WorkflowExecutionStatus.FAILED: TaskState.FAILED,
    WorkflowExecutionStatus.TIMED_OUT: TaskState.FAILED,
}


async def read_truth(client: Client) -> dict[str, TaskState]:
    """The states of all runs that Temporal's visibility store shows, by their ids."""
    found = {}
    async for run in client.list_workflows(f"WorkflowType = '{RUNS.type}'", page_size=1000):
        state = TaskState(run.typed_search_attributes.get(STATE_KEY, TaskState.PENDING))
        if not state.terminal and run.status in _CLOSED_OUTSIDE:
            state = _CLOSED_OUTSIDE[run.status]
        found[RUNS.resource_id(run.id) or run.id] = state
    return found


@dataclass(frozen=True)
class Span:
    """The time of one answer: the truth from before all that it may be made of, and from after it."""

    before: Truth
    after: Truth

    def possible(self, task_id: str) -> set[TaskState | None]:
        """The states in which the run may be shown; None among them: it may be missing."""
        first, last = self.before.get(task_id), self.after.get(task_id)
        if last is None:
            # Forgotten meanwhile, or long ago.
            return {None} if first is None else {None, *self._between(first, None)}
        return {*([None] if first is None else []), *self._between(first, last)}

    def faults_of_list(self, rows: list[dict[str, Any]], wanted: frozenset[TaskState]) -> list[str]:
        """What is wrong with a list of all runs in the wanted states."""
        shown = {str(row["id"]): TaskState(row["state"]) for row in rows}
        faults = [] if len(shown) == len(rows) else ["a run is in the list twice"]
        for task_id in {*shown, *self.before, *self.after}:
            possible = self.possible(task_id)
            state = shown.get(task_id)
            if state is TaskState.PENDING and None in possible:
                # A server lists the runs that it has started before the store shows them.
                continue
            if state is None:
                if possible <= wanted:
                    faults.append(f"{task_id} is missing, and was {self._told(task_id)}")
            elif state not in wanted:
                faults.append(f"{task_id} is shown as {state}, which was not asked for")
            elif state not in possible:
                faults.append(f"{task_id} is shown as {state}, and was {self._told(task_id)}")
        return faults

    def fault_of_count(self, what: str, count: float, states: frozenset[TaskState]) -> list[str]:
        """What is wrong with a number of runs in some states."""
        every = [self.possible(task_id) for task_id in {*self.before, *self.after}]
        least = sum(possible <= states for possible in every)
        most = sum(bool(possible & states) for possible in every)
        return [] if least <= count <= most else [f"{what} is {count:g}, and was {least} to {most}"]

    def faults_of_status(self, task_id: str, state: TaskState) -> list[str]:
        """What is wrong with one run's own answer, which may be ahead of the store."""
        first = self.before.get(task_id)
        if first is None or _RANK[state] >= _RANK[first]:
            return []
        return [f"the status of {task_id} is {state}, and was {self._told(task_id)}"]

    def _between(self, first: TaskState | None, last: TaskState | None) -> set[TaskState]:
        least = -1 if first is None else _RANK[first]
        if last is None:
            return {first} if first is not None and first.terminal else {s for s in TaskState if _RANK[s] >= least}
        return {s for s in TaskState if least <= _RANK[s] <= _RANK[last] and (not s.terminal or s is last)}

    def _told(self, task_id: str) -> str:
        before, after = self.before.get(task_id), self.after.get(task_id)
        return f"{before or 'not there'} before and {after or 'not there'} afterwards"


def by_state(truth: Truth) -> str:
    """How many runs are in each state, in one line."""
    counts: Callable[[TaskState], int] = Counter(truth.values()).__getitem__
    return ", ".join(f"{counts(state)} {state}" for state in TaskState if counts(state))
