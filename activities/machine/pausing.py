"""The sleep of a run's machine: paused when its agent may spend no more, and resumed when it may."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.step.announcements import announce_state
from activities.step.boundary import boundary, bounded_retries
from activities.step.heartbeat import beating
from foundation.errors import MachineError
from guest.programs import shell_command
from machines.host import MachineHost
from machines.ledger import NoRoom
from machines.waiting import next_look
from storage.bucket import Bucket
from workflows import steps
from workflows.runs.budget import Budget
from workflows.runs.messages import TokenUsage
from workflows.runs.requests import PauseRequest, PauseResult, ResumeRequest
from workflows.runs.states import STATE_MESSAGES, TaskState

_SYNC_SECONDS = 40


class BudgetGateway(Protocol):
    """What the steps need of the model gateway."""

    def set_budget(self, machine_id: str, budget: Budget) -> None:
        """Hold the machine to a budget from now on."""

    def settle(self, machine_id: str) -> None:
        """Wait until the machine, which has used up its budget, has no request under way."""

    def usage(self, machine_id: str) -> TokenUsage:
        """Tokens and costs counted so far, and the limits."""


class Sleep:
    """Steps that put a run's machine to sleep and wake it."""

    def __init__(self, host: MachineHost, bucket: Bucket, gateway: BudgetGateway) -> None:
        self._host = host
        self._bucket = bucket
        self._gateway = gateway

    @activity.defn(name=steps.PAUSE.name)
    @boundary
    def pause_machine(self, request: PauseRequest) -> PauseResult:
        """Pause the machine once nothing that it has asked of the model is under way; its room is others' then."""
        machine_id = request.machine_id
        with beating():
            if self._host.record(machine_id).state != "paused":
                # What its programs have written is to be on the disk: should nobody wake it, artifacts are read there.
                with suppress(MachineError):
                    shell = self._host.connect(machine_id)
                    shell.run(f"timeout {_SYNC_SECONDS - 10} sync", timeout=_SYNC_SECONDS, check=False)
                self._gateway.settle(machine_id)
            self._host.pause(machine_id, until=request.deadline)
            announce_state(self._bucket, request.task_id, TaskState.AWAITING_DECISION, request.message)
            return PauseResult(usage=self._gateway.usage(machine_id))

    @activity.defn(name=steps.RESUME.name)
    @bounded_retries()
    @boundary
    def resume_machine(self, request: ResumeRequest) -> None:
        """Raise the budget and let the machine go on, or fail with the time of the next look for room."""
        machine_id = request.machine_id
        with beating():
            # First: what its agent asks when it wakes is not to be refused.
            self._gateway.set_budget(machine_id, request.budget)
            try:
                self._host.resume(machine_id, until=request.deadline, since=request.since)
            except NoRoom as full:
                again = next_look(full.details.get("older", 0))
                raise ApplicationError(full.message, type=full.code, next_retry_delay=again) from None
            self._drop_connections(machine_id)
            announce_state(self._bucket, request.task_id, TaskState.RUNNING, STATE_MESSAGES[TaskState.RUNNING])

    def _drop_connections(self, machine_id: str) -> None:
        """Have the guest drop its connections, whose other ends are gone: who only listens would wait for long."""
        with suppress(MachineError):
            self._host.connect(machine_id).run(shell_command("drop-connections"), timeout=_SYNC_SECONDS, check=False)
