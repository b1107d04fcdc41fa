"""Task runs as Temporal's visibility store holds them: read page by page, and counted, by a selection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from temporalio.api.common.v1 import Payload
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import ListWorkflowExecutionsRequest
from temporalio.client import Client, WorkflowExecution

from api.temporal.client import RPC_LIMIT, Engine
from api.temporal.recorded import status_of
from workflows.names import RUNS, STATE_KEY
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState

_PAGE = 500
_EVERY_RUN = f"WorkflowType = '{RUNS.type}' AND ExecutionStatus != 'ContinuedAsNew'"
_UNDER_WAY = f"ExecutionStatus = 'Running' AND ({STATE_KEY.name} != '{TaskState.PENDING}' OR {STATE_KEY.name} IS NULL)"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which runs: those for which everything holds that is given here. All of them when nothing is.

    ``under_way``: not closed, and not known to be pending. ``since``: began or closed at that time or later. The other
    times are of a run's begin and of its close; one that has not closed is in no selection by ``closed_before``.
    """

    under_way: bool = False
    since: datetime | None = None
    began_from: datetime | None = None
    began_before: datetime | None = None
    closed_before: datetime | None = None
    run_ids: tuple[str, ...] = ()

    @property
    def query(self) -> str:
        """The same in the query language of the store."""
        parts = [_EVERY_RUN]
        if self.under_way:
            parts.append(_UNDER_WAY)
        if self.since is not None:
            parts.append(f"(StartTime >= '{_written(self.since)}' OR CloseTime >= '{_written(self.since)}')")
        if self.began_from is not None:
            parts.append(f"StartTime >= '{_written(self.began_from)}'")
        if self.began_before is not None:
            parts.append(f"StartTime < '{_written(self.began_before)}'")
        if self.closed_before is not None:
            parts.append(f"CloseTime < '{_written(self.closed_before)}'")
        if self.run_ids:
            parts.append(f"RunId IN ({', '.join(repr(run_id) for run_id in self.run_ids)})")
        return " AND ".join(parts)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run's status depends on, all else being written with it: the state it shows, and whether it is closed."""

    state: str
    closed: bool
    execution_status: int


class Entry(Protocol):
    """One run as the store shows it. ``began`` and ``closed`` are dated by Temporal, ``status`` takes work to read."""

    @property
    def run_id(self) -> str: ...
    @property
    def began(self) -> datetime: ...
    @property
    def closed(self) -> datetime | None: ...
    @property
    def recorded(self) -> Recorded: ...
    async def status(self) -> TaskStatus: ...


class Visibility(Protocol):
    """The store. Both methods raise EngineUnavailable."""

    def pages(self, selection: Selection) -> AsyncIterator[list[Entry]]:
        """The runs selected, in no order, some at a time."""
        ...

    async def count(self, selection: Selection) -> int:
        """How many runs are selected."""
        ...


class TemporalVisibility:
    """The store of the Temporal server behind an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def pages(self, selection: Selection) -> AsyncIterator[list[Entry]]:
        """The runs selected, in no order, some at a time. Raises EngineUnavailable."""
        client = await self._engine.client()
        request = ListWorkflowExecutionsRequest(namespace=client.namespace, page_size=_PAGE, query=selection.query)
        while True:
            with self._engine.failures():
                answer = await client.workflow_service.list_workflow_executions(request, retry=True, timeout=RPC_LIMIT)
            yield [_Execution(client, info) for info in answer.executions]
            if not answer.next_page_token:
                return
            request.next_page_token = answer.next_page_token

    async def count(self, selection: Selection) -> int:
        """How many runs are selected. Raises EngineUnavailable."""
        client = await self._engine.client()
        with self._engine.failures():
            return (await client.count_workflows(selection.query, rpc_timeout=RPC_LIMIT)).count


class _Execution:
    """An entry that decodes of Temporal's answer only what it is asked for: most entries are known already."""

    __slots__ = ("_client", "_info")

    def __init__(self, client: Client, info: WorkflowExecutionInfo) -> None:
        self._client = client
        self._info = info

    @property
    def run_id(self) -> str:
        return self._info.execution.run_id

    @property
    def began(self) -> datetime:
        return self._info.start_time.ToDatetime(tzinfo=UTC)

    @property
    def closed(self) -> datetime | None:
        return self._info.close_time.ToDatetime(tzinfo=UTC) if self._info.HasField("close_time") else None

    @property
    def recorded(self) -> Recorded:
        attributes = self._info.search_attributes.indexed_fields
        state = attributes[STATE_KEY.name] if STATE_KEY.name in attributes else Payload()
        return Recorded(state.data.decode().strip('"'), self._info.HasField("close_time"), self._info.status)

    async def status(self) -> TaskStatus:
        # The SDK's own lists decode every entry of every page, which took most of the time of a look.
        execution = WorkflowExecution._from_raw_info(  # noqa: SLF001
            self._info, self._client.namespace, self._client.data_converter
        )
        return await status_of(execution)


def _written(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}Z"
