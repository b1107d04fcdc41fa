"""What the world sees of a run: its status, with the memo, the search attributes and the UI's details that show it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeUpdate

from workflows.messages import cut
from workflows.names import CHANGED_KEY, STARTED_KEY, STATE_KEY, STATUS_MEMO
from workflows.runs.budget import CONTINUE_WITH, spent_in_words
from workflows.runs.messages import TaskStatus, TaskSubmission, TokenUsage, Transition
from workflows.runs.outcome import RunEnded
from workflows.runs.requests import AgentResult
from workflows.runs.states import STATE_MESSAGES, Cause, TaskState

# Notes of one run that its status keeps, and characters of each.
_NOTES_MOST = 40
_NOTE_CHARS = 500


class RunReport:
    """The status of one run, kept by its workflow."""

    def __init__(self, submission: TaskSubmission, now: datetime) -> None:
        metadata = submission.manifest.metadata
        self.status = TaskStatus(
            id=submission.task_id,
            name=metadata.name,
            labels=metadata.labels,
            parent=submission.parent,
            continues=submission.continues,
            state_message=STATE_MESSAGES[TaskState.PENDING],
            created_at=now,
            state_changed_at=now,
            transitions=[Transition(state=TaskState.PENDING, at=now)],
        )

    def enter(
        self, state: TaskState, *, remember: bool = False, shown: bool = True, message: str | None = None
    ) -> None:
        """Change the state, in the search attributes and the UI's details; ``remember`` also in the memo.

        One that is not ``shown`` is among the transitions only. ``message`` is in place of the state's own.
        """
        now = workflow.now()
        status = self.status
        status.state = state
        status.state_changed_at = now
        status.state_message = (status.error if state.terminal else message) or STATE_MESSAGES[state]
        status.transitions.append(Transition(state=state, at=now))
        if not shown:
            return
        updates: list[SearchAttributeUpdate[Any]] = [
            STATE_KEY.value_set(state.value),
            CHANGED_KEY.value_set(now),
        ]
        if status.started_at is None:
            status.started_at = now
            updates.append(STARTED_KEY.value_set(now))
        workflow.upsert_search_attributes(updates)
        if remember or state.terminal:
            self.remember()
        workflow.set_current_details(self._details())

    def await_decision(self, agent: AgentResult, until: datetime, sentence: str) -> None:
        """The agent has used up the budget, and its run waits until then for somebody to decide."""
        self._take_figures(agent)
        self.status.decision_until = until
        self.enter(TaskState.AWAITING_DECISION, remember=True, message=sentence)

    def decided(self, usage: TokenUsage, message: str) -> None:
        """No decision is awaited any more; the limits are others."""
        self.status.decision_until = None
        self.status.usage = usage
        self.status.state_message = message
        self.remember()
        workflow.set_current_details(self._details())

    def remember(self) -> None:
        """Put the status into the memo, which needs no worker to be read."""
        workflow.upsert_memo({STATUS_MEMO: self.status.model_dump(mode="json")})

    def note(self, *sentences: str) -> None:
        """Add to the notes of the status, within limits: they are in its memo."""
        notes = self.status.notes
        for sentence in sentences:
            if len(notes) < _NOTES_MOST and sentence not in notes:
                notes.append(cut(sentence, _NOTE_CHARS))

    def take_agent_result(self, agent: AgentResult) -> None:
        """How the agent ended, and the cause if that was no success."""
        self.status.exit_code = agent.exit_code
        self.status.result = agent.result
        self.status.output = agent.output
        self._take_figures(agent)
        if agent.cause is not None:
            self.take_end(RunEnded(agent.cause, agent.error or STATE_MESSAGES[TaskState.FAILED]))

    def _take_figures(self, agent: AgentResult) -> None:
        self.status.usage = agent.usage
        self.status.network = agent.network
        self.status.progress = agent.progress
        if agent.usage is not None and agent.usage.unpriced_models:
            models = ", ".join(agent.usage.unpriced_models)
            self.note(
                f"The price table has no price for {models}: its tokens are counted, and what they cost is not known. "
                "Against a budget in dollars they count as those of the dearest model of the table."
            )

    def take_end(self, end: RunEnded) -> None:
        """The first cause stands, except that a cancellation before the end replaces it. A success has none."""
        if end.cause is Cause.FINISHED:
            return
        if self.status.cause is None or end.cause is Cause.CANCELLED:
            self.status.cause = end.cause
            self.status.error = end.error

    def outcome(self) -> TaskState:
        """The state in which the run ends as things stand."""
        if self.status.cause is None:
            return TaskState.COMPLETED
        if self.status.cause is Cause.CANCELLED:
            return TaskState.CANCELLED
        return TaskState.FAILED_PRESERVED if self.status.ssh_command else TaskState.FAILED

    def _details(self) -> str:
        """The run as the Temporal UI shows it, in Markdown."""
        status = self.status
        rows = [("State", f"**{status.state}**: {status.state_message}"), ("Task", f"{status.name} (`{status.id}`)")]
        if status.host:
            rows.append(("Host", status.host))
        if status.vm_name:
            rows.append(("Machine", f"`{status.vm_name}`"))
        if status.usage and (spent := spent_in_words(status.usage)):
            rows.append(("Spent", spent))
        if status.decision_until:
            rows.append(
                ("Decide", f"until {status.decision_until:%Y-%m-%d %H:%M} UTC: `{CONTINUE_WITH.format(status.id)}`")
            )
        if status.ssh_command:
            rows.append(("Enter", f"`{status.ssh_command}`"))
        if status.cause:
            rows.append(("Cause", f"{status.cause}: {status.error}"))
        return "\n".join(f"- {label}: {text}" for label, text in rows)
