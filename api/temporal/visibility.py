"""Runs of one resource as Temporal's visibility store holds them: read page by page, and counted, by a selection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

from temporalio.api.common.v1 import Payload
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import ListWorkflowExecutionsRequest
from temporalio.client import Client, WorkflowExecution

from api.temporal.client import RPC_LIMIT, Engine
from api.temporal.rows import Recorded, Resource, Status
from workflows.names import STATE_KEY

Status_co = TypeVar("Status_co", covariant=True)

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Selection:
    """Which runs: those for which everything holds that is given here. All of them when nothing is.

    ``under_way``: not closed, and not known to wait. ``since``: began or closed at that time or later. The other
    times are of a run's begin and of its close; one that has not closed is in no selection by ``closed_before``.
    """

    under_way: bool = False
    since: datetime | None = None
    began_from: datetime | None = None
    began_before: datetime | None = None
    closed_before: datetime | None = None
    run_ids: tuple[str, ...] = ()

    def query(self, resource: Resource[Status]) -> str:
        """The same of one resource, in the query language of the store."""
        parts = [f"WorkflowType = '{resource.kind.type}' AND ExecutionStatus != 'ContinuedAsNew'"]
        if self.under_way:
            state = STATE_KEY.name
            parts.append(f"ExecutionStatus = 'Running' AND ({state} != '{resource.waiting}' OR {state} IS NULL)")
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


class Entry(Protocol[Status_co]):
    """One run as the store shows it. ``began`` and ``closed`` are dated by Temporal, ``status`` takes work to read."""

    @property
    def run_id(self) -> str: ...
    @property
    def began(self) -> datetime: ...
    @property
    def closed(self) -> datetime | None: ...
    @property
    def recorded(self) -> Recorded: ...
    async def status(self) -> Status_co: ...


class Visibility(Protocol[Status]):
    """The store. Both methods raise EngineUnavailable."""

    def pages(self, selection: Selection) -> AsyncIterator[list[Entry[Status]]]:
        """The runs selected, in no order, some at a time."""
        ...

    async def count(self, selection: Selection) -> int:
        """How many runs are selected."""
        ...


class TemporalVisibility(Generic[Status]):
    """The store of the Temporal server behind an engine, for the runs of one resource."""

    def __init__(self, engine: Engine, resource: Resource[Status]) -> None:
        self._engine = engine
        self._resource = resource

    async def pages(self, selection: Selection) -> AsyncIterator[list[Entry[Status]]]:
        """The runs selected, in no order, some at a time. Raises EngineUnavailable."""
        client = await self._engine.client()
        request = ListWorkflowExecutionsRequest(
            namespace=client.namespace, page_size=_PAGE, query=selection.query(self._resource)
        )
        while True:
            with self._engine.failures():
                answer = await client.workflow_service.list_workflow_executions(request, retry=True, timeout=RPC_LIMIT)
            yield [_Execution(client, info, self._resource) for info in answer.executions]
            if not answer.next_page_token:
                return
            request.next_page_token = answer.next_page_token

    async def count(self, selection: Selection) -> int:
        """How many runs are selected. Raises EngineUnavailable."""
        client = await self._engine.client()
        with self._engine.failures():
            return (await client.count_workflows(selection.query(self._resource), rpc_timeout=RPC_LIMIT)).count


class _Execution(Generic[Status]):
    """An entry that decodes of Temporal's answer only what it is asked for: most entries are known already."""

    __slots__ = ("_client", "_info", "_resource")

    def __init__(self, client: Client, info: WorkflowExecutionInfo, resource: Resource[Status]) -> None:
        self._client = client
        self._info = info
        self._resource = resource

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

    async def status(self) -> Status:
        # The SDK's own lists decode every entry of every page, which took most of the time of a look.
        execution = WorkflowExecution._from_raw_info(  # noqa: SLF001
            self._info, self._client.namespace, self._client.data_converter
        )
        return await self._resource.status_of(execution)


def _written(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}Z"
