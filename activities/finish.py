"""The end of a run: its last event, the sealed log and the final record."""

from __future__ import annotations

from temporalio import activity

from activities.step.announcements import announce_state
from activities.step.boundary import boundary
from activities.step.heartbeat import beating
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.records import write_record
from storage.runlog import seal
from workflows import steps
from workflows.runs.requests import FinishRequest
from workflows.told.messages import FinishLocalRequest


class Finish:
    """The steps that make runs readable for good, with or without Temporal."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    @activity.defn(name=steps.FINISH.name)
    @boundary
    def finish_run(self, request: FinishRequest) -> None:
        """Write the final record, then close the log: who sees the log's end finds the record."""
        status = request.status
        place = TASKS.place(status.id)
        with beating():
            write_record(self._bucket, place, status.model_dump(mode="json"))
            announce_state(self._bucket, status.id, status.state, status.state_message or "")
            seal(self._bucket, place)

    @activity.defn(name=steps.FINISH_LOCAL.name)
    @boundary
    def finish_local_run(self, request: FinishLocalRequest) -> None:
        """The same of a run whose agent worked elsewhere: in its log is what its clients told, and nothing else."""
        status = request.status
        place = TASKS.place(status.id)
        with beating():
            write_record(self._bucket, place, status.record())
            seal(self._bucket, place)
