"""The machine of a lease: started, entered, and given its workspace."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from temporalio import activity

from activities.machine.network import MachineNetworks, announce_policy
from activities.machine.trust import host_authorities, trust
from activities.step.announcements import announce, announce_state
from activities.step.boundary import boundary
from activities.step.heartbeat import beating
from foundation.errors import TaskyardError
from foundation.settings import Settings
from foundation.units import format_seconds, parse_size
from guest.contract import GUEST_ADDRESS
from machines.host import MachineHost
from machines.images.store import find_image
from storage.bucket import Bucket
from workflows import steps
from workflows.runs.requests import ProvisionRequest, ProvisionResult, StageRequest
from workflows.runs.states import STATE_MESSAGES, TaskState


class Machines:
    """Steps that make a machine run."""

    def __init__(self, settings: Settings, host: MachineHost, bucket: Bucket, networks: MachineNetworks) -> None:
        self._settings = settings
        self._host = host
        self._bucket = bucket
        self._networks = networks

    @activity.defn(name=steps.PROVISION.name)
    @boundary
    def provision_machine(self, request: ProvisionRequest) -> ProvisionResult:
        """Start the machine unless it runs, and mount the workspace unless it is mounted.

        What it may reach is known to its host before it runs, and whom to trust to its guest.
        """
        task_id = request.task_id
        policy = request.network or request.vm.network()
        with beating():
            announce_state(self._bucket, task_id, TaskState.PROVISIONING, STATE_MESSAGES[TaskState.PROVISIONING])
            image = find_image(self._settings, request.vm.profile)
            self._networks.set_policy(request.machine_id, policy)
            record = self._host.ensure_running(request.machine_id, image, self._announcer(task_id))
            self._host.attach_workspace(request.machine_id, Path(request.workspace_image))
            if authorities := host_authorities(self._settings.guest_certificates):
                trust(self._host.connect(request.machine_id), authorities)
            announce_policy(self._bucket, task_id, policy)
            announce_state(
                self._bucket,
                task_id,
                TaskState.READY,
                f"Machine {request.machine_id} is ready; it was up after {format_seconds(record.boot_seconds or 0.0)} "
                f"({record.acceleration}).",
            )
            return ProvisionResult(
                vm_name=request.machine_id,
                # Every guest has it on its own network; none is reachable from outside its host.
                vm_ip=GUEST_ADDRESS,
                acceleration=record.acceleration or "unknown",
                image=image.digest,
                boot_seconds=record.boot_seconds or 0.0,
                machine_epoch=record.epoch,
            )

    def start_early(self, request: StageRequest) -> None:
        """Start the machine beside the staging of its repository; returns at once.

        A help and no more: the provisioning step waits for it or does it anew, and reports what goes wrong.
        """
        vm = request.vm
        if vm is None:
            return
        # Here and not in the thread: what the provisioning step sets comes later, and is not overtaken.
        with suppress(TaskyardError):
            self._networks.set_policy(request.machine_id, vm.network())

        def start() -> None:
            with suppress(TaskyardError):
                image = find_image(self._settings, vm.profile)
                tell = self._announcer(request.task_id)
                # Without the machine's lock, so that a run may end while a first snapshot of its shape is made.
                self._host.prepare_shape(image, vm.cpus, parse_size(vm.memory), tell)
                self._host.ensure_running(request.machine_id, image, tell)

        # The activity is known to its context only, which a new thread does not inherit.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(start,), name=f"start {request.machine_id}", daemon=True).start()

    def _announcer(self, task_id: str) -> Callable[[str], None]:
        return lambda line: announce(self._bucket, task_id, "progress", line)
