"""The machines of runs that are over: taken once the worker is back, each by itself, and only on a clear answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from foundation.errors import MachineError
from machines.host import MachineHost, MachineRecord
from worker.sweeper import sweep

RUNNING, ENDED = WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.COMPLETED


def a_machine(number: int, **facts: Any) -> MachineRecord:
    now = datetime.now(UTC)
    return MachineRecord(
        id=f"vm-{number:016x}",
        owner_workflow=f"task-{number}",
        owner_run=f"run-{number}",
        cpus=1,
        memory_bytes=1,
        disk_bytes=1,
        created_at=now,
        deadline=now + timedelta(hours=1),
        **facts,
    )


@dataclass
class Host:
    machines: list[MachineRecord]
    resisting: set[str] = field(default_factory=set)
    destroyed: list[str] = field(default_factory=list)
    swept: int = 0

    def records(self) -> list[MachineRecord]:
        return self.machines

    def destroy(self, machine_id: str) -> None:
        if machine_id in self.resisting:
            raise MachineError("its process does not end")
        self.destroyed.append(machine_id)

    def sweep(self) -> list[str]:
        self.swept += 1
        return []


@dataclass
class Engine:
    """Answers for each run with its status, or raises."""

    answers: dict[str, Any]
    asked: int = 0

    def get_workflow_handle(self, workflow_id: str, *, run_id: str) -> Any:
        answer = self.answers[workflow_id]
        self.asked += 1
        assert run_id == workflow_id.replace("task", "run")

        class Handle:
            status = answer

            async def describe(self, *, rpc_timeout: timedelta) -> Any:
                assert rpc_timeout
                if isinstance(answer, Exception):
                    raise answer
                return self

        return Handle()


def refusal(status: RPCStatusCode, message: str = "no answer") -> RPCError:
    return RPCError(message, status, b"")


@pytest.mark.parametrize(
    ("answer", "goes"),
    [
        (RUNNING, False),
        (ENDED, True),
        (WorkflowExecutionStatus.TERMINATED, True),
        (refusal(RPCStatusCode.NOT_FOUND), True),
        (refusal(RPCStatusCode.NOT_FOUND, "Namespace default is not found."), False),
        (refusal(RPCStatusCode.UNAVAILABLE), False),
        (refusal(RPCStatusCode.DEADLINE_EXCEEDED), False),
        (refusal(RPCStatusCode.PERMISSION_DENIED), False),
    ],
)
async def test_a_machine_goes_when_its_run_is_over_for_sure(answer: Any, goes: bool) -> None:
    # What is told of one machine says nothing of the others, whatever it is.
    host = Host(
        [a_machine(1), a_machine(2), a_machine(3), a_machine(4, state="preserved")], resisting={a_machine(2).id}
    )
    engine = Engine({"task-1": answer, "task-2": ENDED, "task-3": ENDED})
    await sweep(cast("MachineHost", host), cast("Client", engine))
    assert host.destroyed == [*([a_machine(1).id] if goes else []), a_machine(3).id]
    assert host.swept == 1


async def test_an_engine_that_is_away_is_not_asked_for_every_machine() -> None:
    host = Host([a_machine(number) for number in range(50)])
    engine = Engine({f"task-{number}": refusal(RPCStatusCode.DEADLINE_EXCEEDED) for number in range(50)})
    await sweep(cast("MachineHost", host), cast("Client", engine))
    assert engine.asked < 10
    assert (host.destroyed, host.swept) == ([], 1)
