"""The machine of a run: where its status says it is, known for a moment, and why there is none."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.machines.hosts import MachineReference
from api.runs.core import Core
from api.runs.machine import RunMachines
from foundation.errors import MachineUnavailable
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState

NOW = datetime(2026, 1, 29, tzinfo=UTC)


class Statuses:
    """Takes the place of the core: statuses by run, and how often one was asked for."""

    def __init__(self, **fields: Any) -> None:
        self.asked = 0
        self.fields: dict[str, Any] = {"state": "running", "host": "a", "vm_name": "vm-1", "machine_epoch": "e1"}
        self.fields |= fields

    async def status(self, task_id: str) -> Any:
        self.asked += 1
        status = TaskStatus(id=task_id, name="a run", created_at=NOW, state_changed_at=NOW, **self.fields)
        return SimpleNamespace(status=status)


async def test_it_is_known_for_two_seconds_unless_it_is_to_be_looked_up_anew() -> None:
    now = [0.0]
    statuses = Statuses()
    machines = RunMachines(cast("Core", statuses), lambda: now[0])
    find = machines.finder("one")
    for _ in range(100):
        assert await find(False) == MachineReference("a", "vm-1", "e1")
    assert statuses.asked == 1
    statuses.fields["machine_epoch"] = "e2"
    assert await find(True) == await find(False) == MachineReference("a", "vm-1", "e2")
    now[0] = 2.1
    await find(False)
    assert statuses.asked == 3
    for number in range(5000):
        await machines.of(f"run-{number}")
    assert len(machines._known) <= 1024


async def test_a_run_whose_host_did_not_say_an_epoch_has_a_machine_all_the_same() -> None:
    machines = RunMachines(cast("Core", Statuses(machine_epoch=None, state="failed_preserved")))
    assert await machines.of("one") == MachineReference("a", "vm-1", None)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (TaskState.PENDING, "no machine yet"),
        (TaskState.PROVISIONING, "no machine yet"),
        (TaskState.AWAITING_DECISION, "sandbox task continue one"),
        (TaskState.COMPLETED, "is gone"),
        (TaskState.FAILED, "is gone"),
        (TaskState.CANCELLED, "is gone"),
    ],
)
async def test_a_run_without_one_says_why_and_is_asked_again(state: TaskState, why: str) -> None:
    nowhere = {} if state.terminal or state is TaskState.AWAITING_DECISION else {"vm_name": None}
    statuses = Statuses(state=state, **nowhere)
    machines = RunMachines(cast("Core", statuses))
    for _ in range(2):
        with pytest.raises(MachineUnavailable, match=why):
            await machines.of("one")
    assert statuses.asked == 2
