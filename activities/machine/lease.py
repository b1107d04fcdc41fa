"""The lease of a host: reserve room for a machine, and at the end release it or keep the machine for a while.

A host that is too small for a machine leaves it to others. The run fails only when it has waited for so long that every
live host has said what it has, and none has enough.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.machine.preservation import say_preserved
from activities.step.announcements import announce, announce_teardown
from activities.step.boundary import boundary
from activities.step.heartbeat import beating
from foundation.errors import InsufficientResources, TaskyardError
from foundation.settings import Settings
from foundation.units import parse_duration, parse_size
from machines.host import MachineHost, Reservation
from machines.ledger import NoRoom
from machines.waiting import LATER, next_look
from storage.bucket import Bucket
from storage.hosts import SAY_SECONDS, STALE, live_hosts, require_host
from workflows import steps
from workflows.messages import Lease
from workflows.runs.requests import ReleaseRequest, ReleaseResult, ReserveRequest

# By then a host that was just started has said what it has, and one that went away is not counted any more.
_ALL_HEARD = STALE + timedelta(seconds=2 * SAY_SECONDS)


def host_queue(settings: Settings) -> str:
    """The task queue that only this host's worker polls."""
    return f"{settings.task_queue}-host-{settings.host_name}"


def agent_queue(settings: Settings) -> str:
    """The task queue of the same worker on which it follows agents, so that no other step waits behind them."""
    return f"{host_queue(settings)}-agents"


class Leases:
    """Steps that take and give back a host's room."""

    def __init__(self, settings: Settings, host: MachineHost, bucket: Bucket) -> None:
        self._settings = settings
        self._host = host
        self._bucket = bucket

    @activity.defn(name=steps.RESERVE.name)
    @boundary
    def reserve_host(self, request: ReserveRequest) -> Lease:
        """Reserve room on this host, or fail with the time of the next look, so that waiting costs no history."""
        waited = datetime.now(UTC) - activity.info().scheduled_time
        try:
            self._host.reserve(
                Reservation(
                    machine_id=request.machine_id,
                    owner_workflow=request.workflow_id,
                    owner_run=request.run_id,
                    cpus=request.vm.cpus,
                    memory_bytes=parse_size(request.vm.memory),
                    disk_bytes=parse_size(request.vm.disk),
                    # The run's limits are counted from here on, and not from when it began to wait for room.
                    deadline=request.deadline + waited,
                    since=request.since or activity.info().scheduled_time,
                )
            )
        except InsufficientResources as small:
            if waited > _ALL_HEARD:
                vm = request.vm
                require_host(live_hosts(self._bucket), cpus=vm.cpus, memory=vm.memory, disk=vm.disk)
            raise ApplicationError(small.message, type=NoRoom.code, next_retry_delay=LATER) from None
        except NoRoom as full:
            again = next_look(full.details.get("older", 0))
            raise ApplicationError(full.message, type=full.code, next_retry_delay=again) from full
        if self._settings.model_is_scripted:
            announce(
                self._bucket,
                request.task_id,
                "model",
                "The model is scripted: answers come from a scenario file, not from a real model. "
                "Set ANTHROPIC_API_KEY for the real one.",
                scripted=True,
            )
        else:
            announce(
                self._bucket,
                request.task_id,
                "model",
                f"Model API: {self._settings.anthropic_base_url}",
                scripted=False,
            )
        announce(
            self._bucket, request.task_id, "lease", f"Host: {self._settings.host_name}", machine=request.machine_id
        )
        return Lease(
            machine_id=request.machine_id,
            host=self._settings.host_name,
            task_queue=host_queue(self._settings),
            agent_queue=agent_queue(self._settings),
        )

    @activity.defn(name=steps.RELEASE.name)
    @boundary
    def release_machine(self, request: ReleaseRequest) -> ReleaseResult:
        """Tear the machine down, or keep a living one until the settings' ``preserve_for`` has passed.

        One that sleeps is woken to be looked into; where there is no room for that, it is torn down.
        """
        with beating():
            if request.preserve and self._is_awake(request.machine_id):
                until = datetime.now(UTC) + timedelta(seconds=parse_duration(self._settings.preserve_for))
                self._host.preserve(request.machine_id, until)
                say_preserved(self._settings.host_name, self._host, self._bucket)
                command = self._host.ssh_command(request.machine_id)
                announce(
                    self._bucket,
                    request.task_id,
                    "preserved",
                    f"The machine is kept until {until:%Y-%m-%d %H:%M} UTC; enter it with: {command}",
                )
                return ReleaseResult(ssh_command=command, preserved_until=until)
            self._host.destroy(request.machine_id)
            announce_teardown(self._bucket, request.task_id)
            return ReleaseResult()

    def _is_awake(self, machine_id: str) -> bool:
        with suppress(TaskyardError):
            if self._host.record(machine_id).state == "paused":
                self._host.resume(machine_id)
        return self._host.is_alive(machine_id)
