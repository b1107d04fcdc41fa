"""The push of a run: its work onto a branch of its git host, once it is collected, if the manifest asks for it."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows import steps
from workflows.calls import called_off
from workflows.runs.calls import RunCalls
from workflows.runs.interruption import Interruption
from workflows.runs.messages import Pushed
from workflows.runs.report import RunReport
from workflows.runs.requests import CollectResult, PushRequest, StageResult
from workflows.specs.wire import Manifest

_NOT_KNOWN = "Look at the branch on the git host: whether the push got there is not known."


class Push:
    """What a run pushes. Whatever becomes of it, the run ends as it would have, and its artifacts stay."""

    def __init__(
        self, calls: RunCalls, report: RunReport, interruption: Interruption, machine_id: str, manifest: Manifest
    ) -> None:
        self._calls = calls
        self._report = report
        self._interruption = interruption
        self._machine_id = machine_id
        self._manifest = manifest

    @property
    def wanted(self) -> bool:
        """Whether the manifest asks for a push."""
        return self._manifest.repository.push is not None

    async def run(self, staged: StageResult, collected: CollectResult) -> None:
        """Push the work of a run that went well. A cancel calls it off."""
        if not self.wanted:
            return
        status = self._report.status
        if status.cause is not None or self._interruption.cancel is not None:
            status.pushed = Pushed(error="Nothing was pushed: the run did not succeed. Its patch is an artifact.")
            return
        handle = self._calls.start(steps.PUSH, self._request(staged, collected), "Push the work to a branch")
        await workflow.wait_condition(lambda: handle.done() or self._interruption.cancel is not None)
        if not handle.done() and not await called_off(handle):
            status.pushed = Pushed(error=f"The push was called off by the cancel. {_NOT_KNOWN}")
            return
        try:
            status.pushed = await handle
        except ActivityError as error:
            self._calls.note_failure(steps.PUSH, error)
            reason = getattr(error.cause, "message", None) or "it was called off"
            status.pushed = Pushed(error=f"The push did not end: {reason.rstrip('.')}. {_NOT_KNOWN}")

    def _request(self, staged: StageResult, collected: CollectResult) -> PushRequest:
        manifest = self._manifest
        return PushRequest(
            task_id=self._report.status.id,
            machine_id=self._machine_id,
            name=manifest.metadata.name,
            repository=manifest.repository,
            base_commit=staged.base_commit,
            mirror=staged.mirror,
            head=collected.head,
            at=workflow.now(),
            secrets=manifest.guest_secrets(),
            credentials=manifest.push_credentials(),
            api_credentials=manifest.api_credentials(),
        )
