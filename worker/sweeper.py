"""Takes the machines of runs that are over, and lets the host repair what does not match its own records."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from foundation.engine import lacks_namespace
from foundation.errors import MachineError
from machines.host import MachineHost

SWEEP_SECONDS = 60.0
_RPC_LIMIT = timedelta(seconds=10)
# Questions in a row without an answer after which this sweep asks for no further run: each may take the whole limit.
_UNANSWERED_MOST = 3
_NO_ANSWER = frozenset({RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED})

log = structlog.get_logger("sweeper")


async def sweep_forever(host: MachineHost, client: Client) -> None:
    """Sweep at once and then once a minute, until cancelled. A sweep that fails is logged and tried again."""
    while True:
        try:
            await sweep(host, client)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the next sweep is needed
            log.warning("the sweep could not be finished", error=str(error))
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(host: MachineHost, client: Client) -> list[str]:
    """One sweep. Returns a line for each thing that was taken away.

    A machine goes when the run that owns it has ended without keeping it. A run that cannot be asked about is taken
    to live: unreachable is not dead.
    """
    removed: list[str] = []
    unanswered = 0
    for record in await asyncio.to_thread(host.records):
        # A member of the pool has no owner, nor has one that was given away: the host's own sweep knows about those.
        if not record.owner_workflow or record.preserved or unanswered == _UNANSWERED_MOST:
            continue
        # One machine that resists, or one run that cannot be asked about, is no reason to leave the others.
        try:
            if await _owner_is_over(client, record.owner_workflow, record.owner_run):
                await asyncio.to_thread(host.destroy, record.id)
                removed.append(f"{record.id}: its run {record.owner_workflow} has ended")
            unanswered = 0
        except (MachineError, OSError, RPCError) as error:
            unanswered = unanswered + 1 if isinstance(error, RPCError) and error.status in _NO_ANSWER else 0
            log.warning("a machine could not be swept", machine=record.id, error=str(error))
    removed += await asyncio.to_thread(host.sweep)
    for line in removed:
        log.info("swept", what=line)
    return removed


async def _owner_is_over(client: Client, workflow_id: str, run_id: str) -> bool:
    try:
        description = await client.get_workflow_handle(workflow_id, run_id=run_id).describe(rpc_timeout=_RPC_LIMIT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and not lacks_namespace(error):
            return True
        raise
    return description.status is not WorkflowExecutionStatus.RUNNING
