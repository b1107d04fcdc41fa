"""The steps that put a run's machine to sleep and wake it: in which order things are done, and what may go wrong."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.machine.lease import Leases
from activities.machine.pausing import Sleep
from foundation.errors import GuestUnreachable, MachineError, MachineLost, TaskyardError
from foundation.settings import Settings
from machines.host import MachineHost, NoRoom
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.runlog import read_entries
from tests.stand_ins.memory_bucket import MemoryBucket
from workflows import steps
from workflows.runs.budget import Budget
from workflows.runs.messages import TokenUsage
from workflows.runs.requests import PauseRequest, PauseResult, ReleaseRequest, ResumeRequest

MACHINE = "vm-00112233445566aa"
LATER = datetime.now(UTC) + timedelta(days=7)


class Yard:
    """One machine and its gateway: what is done to them is noted, and ``failing`` fails it."""

    def __init__(self, *, state: str = "running", failing: TaskyardError | None = None, silent: bool = False) -> None:
        self.done: list[str] = []
        self.bucket = MemoryBucket()
        self.state = state
        self.failing = failing
        self.silent = silent

    def record(self, _machine_id: str) -> Any:
        return SimpleNamespace(state=self.state)

    def is_alive(self, _machine_id: str) -> bool:
        return self.state != "paused"

    def connect(self, _machine_id: str) -> Any:
        if self.silent:
            raise GuestUnreachable("It does not answer")
        return SimpleNamespace(run=lambda command, **_: self.done.append(command.split()[-1]))

    def settle(self, _machine_id: str) -> None:
        self.done.append("settled")

    def usage(self, _machine_id: str) -> TokenUsage:
        return TokenUsage(requests=self.done.count("settled"))

    def set_budget(self, _machine_id: str, budget: Budget) -> None:
        self.done.append(f"${budget.usd}")

    def pause(self, _machine_id: str, *, until: datetime) -> None:
        self._do("paused", until)

    def resume(self, _machine_id: str, *, until: datetime | None = None, since: datetime | None = None) -> None:
        self._do("running", until)
        assert until is None or since == LATER

    def destroy(self, _machine_id: str) -> None:
        self.done.append("destroyed")

    def preserve(self, _machine_id: str, _until: datetime) -> None:
        self.done.append("preserved")

    def ssh_command(self, _machine_id: str) -> str:
        return "ssh"

    def records(self) -> list[Any]:
        return []

    def _do(self, state: str, until: datetime | None) -> None:
        if self.failing:
            raise self.failing
        assert until in {None, LATER}
        self.state = state
        self.done.append(state)

    def sleep(self) -> Sleep:
        return Sleep(cast("MachineHost", self), cast("Bucket", self.bucket), self)

    def states(self) -> list[str]:
        return [entry.data for entry in read_entries(self.bucket, TASKS.place("a"))]


def run(step: steps.Step[Any, Any], activity: Any, request: Any, attempt: int = 1) -> Any:
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, activity_type=step.name, attempt=attempt)
    return environment.run(activity, request)


def pause(yard: Yard, attempt: int = 1) -> PauseResult:
    request = PauseRequest(task_id="a", machine_id=MACHINE, deadline=LATER, message="used up")
    return run(steps.PAUSE, yard.sleep().pause_machine, request, attempt)


def resume(yard: Yard) -> None:
    request = ResumeRequest(task_id="a", machine_id=MACHINE, budget=Budget(usd=7.0), deadline=LATER, since=LATER)
    run(steps.RESUME, yard.sleep().resume_machine, request)


def test_what_is_written_is_on_the_disk_and_nothing_under_way_when_the_machine_falls_asleep() -> None:
    yard = Yard()
    # What was under way is counted.
    assert pause(yard).usage == TokenUsage(requests=1)
    assert yard.done == ["sync", "settled", "paused"]
    (state,) = yard.states()
    assert '"state": "awaiting_decision"' in state
    # A further attempt disturbs nothing, and says nothing twice.
    pause(yard, attempt=2)
    assert yard.done == ["sync", "settled", "paused", "paused"]
    assert len(yard.states()) == 1


def test_a_guest_that_does_not_answer_falls_asleep_all_the_same() -> None:
    yard = Yard(silent=True)
    pause(yard)
    assert yard.done == ["settled", "paused"]


def test_the_budget_is_raised_before_the_machine_goes_on() -> None:
    yard = Yard(state="paused")
    resume(yard)
    assert yard.done[:2] == ["$7.0", "running"]
    assert '"state": "running"' in yard.states()[-1]


@pytest.mark.parametrize(
    ("failing", "code", "final"),
    [
        (NoRoom("No room", older=3), "no_room", False),
        (MachineLost("Its memory is gone"), "machine_lost", True),
        (MachineError("It cannot be loaded"), "machine_error", False),
    ],
)
def test_a_machine_that_cannot_go_on_says_why(failing: TaskyardError, code: str, final: bool) -> None:
    with pytest.raises(ApplicationError) as refused:
        resume(Yard(state="paused", failing=failing))
    assert (refused.value.type, refused.value.non_retryable) == (code, final)
    assert (refused.value.next_retry_delay is not None) == (code == "no_room")


@pytest.mark.parametrize(
    ("failing", "done"), [(None, ["running", "preserved"]), (NoRoom("No room"), ["destroyed"])], ids=["room", "none"]
)
def test_a_machine_that_sleeps_is_woken_to_be_looked_into(failing: TaskyardError | None, done: list[str]) -> None:
    yard = Yard(state="paused", failing=failing)
    leases = Leases(Settings(home="/nowhere"), cast("MachineHost", yard), cast("Bucket", yard.bucket))  # type: ignore[arg-type]
    request = ReleaseRequest(task_id="a", machine_id=MACHINE, preserve=True)
    kept = run(steps.RELEASE, leases.release_machine, request)
    assert yard.done == done
    assert kept.ssh_command == (None if failing else "ssh")
