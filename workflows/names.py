"""The names by which other processes and other systems reach workflows, in one table.

They stand in histories, in Temporal's visibility store and in programs of other people (docs/signals.md): a name that
was released keeps its meaning, and new ones are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from temporalio.common import SearchAttributeKey


@dataclass(frozen=True)
class WorkflowKind:
    """A kind of workflow, each of which owns one resource: its type, and what the ids of such workflows begin with."""

    type: str
    id_prefix: str

    def workflow_id(self, resource_id: str) -> str:
        """The id of the workflow that owns the resource."""
        return self.id_prefix + resource_id

    def resource_id(self, workflow_id: str) -> str | None:
        """The id of the resource that the workflow owns; None when the workflow is of another kind."""
        return workflow_id.removeprefix(self.id_prefix) if workflow_id.startswith(self.id_prefix) else None


# The owner of a task run.
RUNS = WorkflowKind(type="TaskWorkflow", id_prefix="task-")
# The owner of a parent task: what is to be done, of which runs are the executions.
PARENTS = WorkflowKind(type="ParentWorkflow", id_prefix="parent-")
# That of a run whose agent works elsewhere, and tells.
LOCAL_RUNS = WorkflowKind(type="LocalRunWorkflow", id_prefix="local-")

# --- what a workflow is told and asked

# Signals of a run.
CANCEL = "cancel"
USER_MESSAGE = "user_message"
CLOSE = "close"
CONTINUE = "continue"
NETWORK = "network"
INTERRUPT = "interrupt"
ANSWER = "answer"
CONFIGURE = "configure"
CLEAR_MESSAGES = "clear_messages"
# From its own follower: what the agent asks and confirms.
AGENT_SAID = "agent_said"
# From followers of earlier versions, which had no update yet.
TURN_ENDED = "turn_ended"

# Updates of a run: from its own follower, and from the API.
END_TURN = "end_turn"
CHANGE_NETWORK = "change_network"
CONTINUE_RUN = "continue_run"
INTERRUPT_TURN = "interrupt_turn"
ANSWER_REQUEST = "answer_request"
CONFIGURE_AGENT = "configure_agent"
CLEAR_WAITING = "clear_waiting"
START_HELD = "start"

# Updates of a parent task.
CHANGE_PARENT = "change"
DELETE_PARENT = "delete"
TELL = "tell"  # of a local run too

# Queries.
STATUS = "status"
MESSAGES = "messages"

# --- how a workflow knows under which version it began: names of patches in its history

# A run that has one does what came with it; one that does not goes on as the version did under which it began.
LEAN = "lean"  # reserves at once, and shows no state that passes within one workflow task
BOUNDED = "bounded"  # waits for nothing without a bound when it ends
REFUSES = "refuses-messages"  # takes no message that it cannot deliver
REDELIVERS = "redelivers"  # goes on with the conversation when a delivery has failed
EGRESS = "egress"  # has a network policy, which can be changed
KEEPS_ANSWERS = "keeps-answers"  # repeats an answer that its agent may not have got, and takes no other
OWN_INTERRUPTS = "own-interrupts"  # believes that a turn was interrupted only when it has asked for that itself
HEARS = "hears-last-words"  # takes what comes about its end while it is ending, and a message with a late start
COUNTS = "counts-updates"  # ends, and takes no message, when it has taken as many updates as Temporal lets it

# --- what a workflow shows without being asked

# Keys of its memo.
STATUS_MEMO = "status"

STATE_KEY = SearchAttributeKey.for_keyword("TaskyardState")
NAME_KEY = SearchAttributeKey.for_keyword("TaskyardName")
LABELS_KEY = SearchAttributeKey.for_keyword_list("TaskyardLabels")
PARENT_KEY = SearchAttributeKey.for_keyword("TaskyardParent")
CREATED_KEY = SearchAttributeKey.for_datetime("TaskyardCreatedAt")
STARTED_KEY = SearchAttributeKey.for_datetime("TaskyardStartedAt")
CHANGED_KEY = SearchAttributeKey.for_datetime("TaskyardStateChangedAt")

# Each has to be registered in Temporal's namespace: temporal-dev/search-attributes.yaml says the same for people.
SEARCH_ATTRIBUTES: tuple[SearchAttributeKey[Any], ...] = (
    STATE_KEY,
    NAME_KEY,
    LABELS_KEY,
    PARENT_KEY,
    CREATED_KEY,
    STARTED_KEY,
    CHANGED_KEY,
)
