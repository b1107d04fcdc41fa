"""States of a local run, and what becomes of it when a client tells of another one."""

from __future__ import annotations

from enum import StrEnum


class LocalState(StrEnum):
    """Where a local run stands, in the order in which it comes there. Its client says so; nothing here makes it."""

    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True when the run has ended and nothing about it changes any more."""
        return self in _TERMINAL

    @classmethod
    def _missing_(cls, _: object) -> LocalState:
        """A newer process may know a state that this one does not."""
        return cls.RUNNING


_TERMINAL = frozenset({LocalState.COMPLETED, LocalState.FAILED, LocalState.CANCELLED})
_RANK = {state: min(rank, 3) for rank, state in enumerate(LocalState)}

STATE_MESSAGES: dict[LocalState, str] = {
    LocalState.CREATED: "Created, not started",
    LocalState.QUEUED: "Waiting for its agent",
    LocalState.RUNNING: "The agent works elsewhere",
    LocalState.COMPLETED: "The run is said to have been completed",
    LocalState.FAILED: "The run is said to have failed",
    LocalState.CANCELLED: "The run was cancelled",
}


class Step(StrEnum):
    """What a told state does to a run."""

    ENTERS = "enters"
    CHANGES_NOTHING = "changes_nothing"
    REFUSED = "refused"


def step(before: LocalState, told: LocalState) -> Step:
    """What becomes of a run when a client tells of a state: states may be left out, and none is gone back to.

    An agent's first word may get lost, so that its last one is the only one; what has ended stays as it ended.
    """
    if before.terminal or told is before:
        return Step.CHANGES_NOTHING
    return Step.ENTERS if _RANK[told] > _RANK[before] else Step.REFUSED
