"""The step that collects what a run leaves, and then lets its machine go."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from temporalio import activity

from activities.artifacts.collection import Collection, told
from activities.machine.network import MachineNetworks
from activities.machine.outputs import KeptOutputs
from activities.machine.secrets import RunSecrets
from activities.step.announcements import announce, announce_state, announce_teardown
from activities.step.boundary import boundary
from activities.step.heartbeat import beating
from foundation.errors import MachineError, MachineNotFound, TaskyardError
from foundation.settings import Settings
from foundation.units import format_size
from machines.host import MachineHost
from storage import artifacts as stored
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.live.host import open_log
from storage.redaction import Redactor
from workflows import steps
from workflows.runs.messages import NetworkUse
from workflows.runs.requests import Artifact, CollectRequest, CollectResult
from workflows.runs.states import STATE_MESSAGES, TaskState

_NOTES_ANNOUNCED = 20

log = structlog.get_logger("artifacts")


class Artifacts:
    """The step that collects what a run leaves."""

    def __init__(self, settings: Settings, host: MachineHost, bucket: Bucket, networks: MachineNetworks) -> None:
        self._settings = settings
        self._host = host
        self._bucket = bucket
        self._networks = networks
        self._outputs = KeptOutputs(settings, host, bucket)

    @activity.defn(name=steps.COLLECT.name)
    @boundary
    def collect_artifacts(self, request: CollectRequest) -> CollectResult:
        """Store patch, list of untracked files, the patterns' files and metadata; a repeated call replaces them.

        What can be read is stored first, then what failed is raised. Only after that the machine is torn down.
        """
        with beating():
            if activity.info().attempt > 1 and request.release and self._is_going(request.machine_id):
                place = TASKS.place(request.task_id)
                earlier = stored.index(self._bucket, place)
                return _result(earlier, *told(self._bucket, place), released=self._let_go(request))
            announce_state(self._bucket, request.task_id, TaskState.COMPLETING, STATE_MESSAGES[TaskState.COMPLETING])
            secrets = self._secrets(request)
            redactor = Redactor(secrets)
            network = self._networks.watched(request.machine_id, secrets)
            with open_log(self._bucket, TASKS.place(request.task_id), redactor) as writer:
                network.write(writer, last=True)
            self._outputs.settle(request.machine_id, TASKS.place(request.task_id), redactor)
            collection = Collection(self._settings, self._host, self._bucket, request, redactor, network.use())
            artifacts = collection.run()
            sizes = [each.size_bytes for each in artifacts if not each.hidden]
            sentence = f"Collected {len(sizes)} artifacts, {format_size(sum(sizes))}."
            announce(self._bucket, request.task_id, "artifacts", sentence, redactor=redactor)
            for note in collection.notes[:_NOTES_ANNOUNCED]:
                announce(self._bucket, request.task_id, "note", note, redactor=redactor)
            if collection.failure:
                raise collection.failure
            released = request.release and self._let_go(request)
            result = _result(artifacts, collection.notes, collection.use, released=released)
            return result.model_copy(update={"head": collection.head})

    def _is_going(self, machine_id: str) -> bool:
        """True when an earlier attempt has begun to tear the machine down, which it did after all was stored."""
        try:
            return self._host.record(machine_id).state == "destroying"
        except MachineNotFound:
            return True

    def _let_go(self, request: CollectRequest) -> bool:
        try:
            self._host.destroy(request.machine_id)
        except MachineError as error:
            # The step whose work it is otherwise tries it again.
            log.warning("the machine could not be torn down", machine=request.machine_id, error=error.message)
            return False
        announce_teardown(self._bucket, request.task_id)
        return True

    def _secrets(self, request: CollectRequest) -> dict[str, str]:
        """Values to take out of the artifacts. They must be known, unless the run never got them."""
        try:
            return RunSecrets(self._settings).known(request.machine_id, request.secrets)
        except TaskyardError:
            if any(transition.state is TaskState.RUNNING for transition in request.status.transitions):
                raise
            return {}


def _result(
    artifacts: Sequence[stored.StoredArtifact], notes: list[str], use: NetworkUse | None, *, released: bool
) -> CollectResult:
    collected = [Artifact.model_validate(each.model_dump()) for each in artifacts]
    return CollectResult(artifacts=collected, released=released, notes=notes, network=use)
