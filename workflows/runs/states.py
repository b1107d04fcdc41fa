"""States of a task run and the closed list of causes that end one."""

from __future__ import annotations

from enum import StrEnum


class TaskState(StrEnum):
    """Where a task run stands (Task Orchestration contract, section 5.1), in the order in which it comes there.

    Only from ``awaiting_decision``, which is an addition to the contract, a run may go back: to ``running``.
    """

    PENDING = "pending"
    STAGING = "staging"
    PROVISIONING = "provisioning"
    READY = "ready"
    RUNNING = "running"
    AWAITING_DECISION = "awaiting_decision"
    COMPLETING = "completing"
    COMPLETED = "completed"
    FAILED = "failed"
    FAILED_PRESERVED = "failed_preserved"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True when the run has ended and nothing about it changes any more."""
        return self in _TERMINAL

    @property
    def recurs(self) -> bool:
        """Whether a run may come into this state several times."""
        return self in _RECURRING


_TERMINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.FAILED_PRESERVED, TaskState.CANCELLED})

_RECURRING = frozenset({TaskState.RUNNING, TaskState.AWAITING_DECISION})

STATE_MESSAGES: dict[TaskState, str] = {
    TaskState.PENDING: "Waiting for room on a host",
    TaskState.STAGING: "Cloning repository and preparing workspace",
    TaskState.PROVISIONING: "Creating VM",
    TaskState.READY: "VM ready, starting execution",
    TaskState.RUNNING: "Claude Code executing",
    TaskState.AWAITING_DECISION: "Budget used up, waiting for a decision",
    TaskState.COMPLETING: "Collecting artifacts",
    TaskState.COMPLETED: "Task completed successfully",
    TaskState.FAILED: "Task failed",
    TaskState.FAILED_PRESERVED: "Task failed; its VM was preserved for debugging",
    TaskState.CANCELLED: "Task cancelled",
}


class Cause(StrEnum):
    """Why a run that did not complete ended: exactly one for each."""

    AGENT_ERROR = "agent_error"  # Claude Code ended with a result that is an error
    AGENT_EXIT = "agent_exit"  # Claude Code exited with a code other than 0
    AGENT_NO_RESULT = "agent_no_result"  # Claude Code exited with 0, but reported no result
    MODEL_NOT_ASKED = "model_not_asked"  # Claude Code reported success without an answer of the model
    AGENT_START = "agent_start"  # Claude Code could not be started in the guest
    RUN_TIMEOUT = "run_timeout"  # lifecycle.timeout passed
    NO_OUTPUT_TIMEOUT = "no_output_timeout"  # lifecycle.hang_timeout passed without output
    LOG_LIMIT = "log_limit"  # the agent wrote more than the host's log_limit
    OUTPUT_INVALID = "output_invalid"  # the run's output does not fit claude.output_schema, or there is none
    BUDGET_EXCEEDED = "budget_exceeded"  # claude.max_budget_usd or max_tokens_total is used up
    REPOSITORY = "repository"  # the repository, branch or commit cannot be staged
    STAGE_TIMEOUT = "stage_timeout"  # lifecycle.stage_timeout passed
    PROVISION = "provision"  # the machine could not be made or entered
    PROVISION_TIMEOUT = "provision_timeout"  # lifecycle.provision_timeout passed
    RESOURCES = "insufficient_resources"  # no host can give what the manifest asks for
    SECRET = "secret"  # a secret reference cannot be resolved  # noqa: S105 -- a cause, not a credential
    MACHINE_LOST = "machine_lost"  # the machine's process ended under the run
    HOST_LOST = "host_lost"  # the host's worker did not come back in time
    COLLECT = "collect"  # the artifacts could not be collected
    CANCELLED = "cancelled"  # somebody cancelled the run
    TOLD = "told"  # a client said that the run has failed
    FINISHED = "finished"  # a client said that the run is completed: no failure, and in no status
    INTERNAL = "internal_error"  # a fault of Taskyard

    @classmethod
    def _missing_(cls, _: object) -> Cause:
        """A newer process may have a cause that this one does not know."""
        return cls.INTERNAL
