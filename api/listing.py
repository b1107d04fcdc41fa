"""Lists of runs out of Temporal's visibility store: filters, stable order, pages and totals."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from temporalio.client import Client, WorkflowExecution

from api.engine import RPC_LIMIT
from api.snapshot import CREATED_KEY, LABELS_KEY, NAME_KEY, WORKFLOW_TYPE, label_token, status_of
from foundation.errors import InvalidParameter
from workflows.messages import TaskStatus
from workflows.states import TaskState
from workflows.task_workflow import CHANGED_KEY, STARTED_KEY

Sort = Literal["created_at", "started_at", "state_changed_at", "name"]
Order = Literal["asc", "desc"]

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

_TIMES = {"created_at": CREATED_KEY, "started_at": STARTED_KEY, "state_changed_at": CHANGED_KEY}
_NEVER = datetime.min.replace(tzinfo=UTC)
_CLOSED_OUTSIDE = ("Terminated", "TimedOut", "Failed")


@dataclass(frozen=True)
class TaskQuery:
    """Which runs, in which order, and which part of them. Empty ``states`` and ``labels`` filter nothing."""

    states: frozenset[TaskState] = frozenset()
    labels: dict[str, str] = field(default_factory=dict)
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    sort: Sort = "created_at"
    order: Order = "desc"


@dataclass(frozen=True)
class Page:
    """One page of runs, and how many the filters let through in all."""

    tasks: list[TaskStatus]
    total: int


def parse_states(text: str | None) -> frozenset[TaskState]:
    """The states in a comma-separated list. Raises InvalidParameter for a word that is none."""
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    unknown = [word for word in words if word not in set(TaskState)]
    if unknown:
        raise InvalidParameter(
            f"'{unknown[0]}' is not a state; states are {', '.join(TaskState)}.", field="state", unknown=unknown
        )
    return frozenset(TaskState(word) for word in words)


async def find(client: Client, query: TaskQuery) -> Page:
    """The page of runs that the query asks for.

    Not every visibility store can sort, so the matching runs are sorted here, with the id to break ties; only the
    rows of the page are decoded.
    """
    rows = [
        row
        async for row in client.list_workflows(visibility_query(query), rpc_timeout=RPC_LIMIT)
        if _has_labels(row, query.labels)
    ]
    rows.sort(key=lambda row: (_sorted_by(row, query.sort), row.id), reverse=query.order == "desc")
    shown = rows[query.offset : query.offset + query.limit]
    return Page([await status_of(row) for row in shown], len(rows))


def visibility_query(query: TaskQuery) -> str:
    """The query as Temporal's list filter."""
    clauses = [f"WorkflowType = '{WORKFLOW_TYPE}'", "ExecutionStatus != 'ContinuedAsNew'"]
    if query.states:
        clauses.append("(" + " OR ".join(_state_clauses(query.states)) + ")")
    clauses += [f"{LABELS_KEY.name} = '{label_token(key, value)}'" for key, value in sorted(query.labels.items())]
    return " AND ".join(clauses)


def _state_clauses(states: frozenset[TaskState]) -> list[str]:
    """State filters that agree with the state shown, also for runs that were ended past their own steps."""
    active = [state for state in TaskState if not state.terminal]
    live = sorted(state for state in states if not state.terminal)
    ended = sorted(state for state in states if state.terminal)
    clauses = []
    if live:
        clauses.append(f"(TaskyardState IN ({_quoted(live)}) AND ExecutionStatus = 'Running')")
    if ended:
        clauses.append(f"TaskyardState IN ({_quoted(ended)})")
    if TaskState.FAILED in states:
        clauses.append(f"(TaskyardState IN ({_quoted(active)}) AND ExecutionStatus IN ({_quoted(_CLOSED_OUTSIDE)}))")
    if TaskState.CANCELLED in states:
        clauses.append(f"(TaskyardState IN ({_quoted(active)}) AND ExecutionStatus = 'Canceled')")
    return clauses


def _quoted(words: Any) -> str:
    return ", ".join(f"'{word}'" for word in words)


def _sorted_by(row: WorkflowExecution, sort: Sort) -> str | datetime:
    attributes = row.typed_search_attributes
    if sort == "name":
        return attributes.get(NAME_KEY, "")
    return attributes.get(_TIMES[sort], _NEVER)


def _has_labels(row: WorkflowExecution, labels: dict[str, str]) -> bool:
    """Exact comparison: some visibility stores fold case."""
    if not labels:
        return True
    held = set(row.typed_search_attributes.get(LABELS_KEY) or ())
    return all(label_token(key, value) in held for key, value in labels.items())
