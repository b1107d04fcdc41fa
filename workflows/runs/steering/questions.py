"""What an agent asks as its run has it: the request, its one answer, and whether that has arrived."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from foundation.errors import InvalidParameter
from workflows.runs.steering.messages import (
    QUESTION_TOOL,
    ControlAnswer,
    PermissionAnswer,
    PermissionDecision,
    PermissionRequest,
)


@dataclass
class Control:
    """One line for the agent's stdin, once by its id; ``event`` goes into the run's log when it is there.

    ``delivered``: whether it was handed over, once that is known; one that was not may have arrived all the same.
    ``since`` is when that was first tried; ``repeated``, whether it was tried again since.
    """

    id: str
    line: dict[str, Any]
    summary: str
    since: datetime
    event: dict[str, Any] | None = None
    delivered: bool | None = None
    repeated: bool = False
    answer: ControlAnswer | None = None


@dataclass
class Question:
    """A request of the agent's. ``left``: how long it may still go unanswered. ``given``: the answer that counts.

    ``gone``: the agent waits for no answer any more.
    """

    request: PermissionRequest
    left: timedelta
    given: PermissionAnswer | None = None
    control: Control | None = None
    gone: bool = False

    @property
    def answered(self) -> bool:
        """Whether the answer is with the agent."""
        return self.control is not None and self.control.delivered is True


def check_answers(request: PermissionRequest, given: PermissionAnswer) -> None:
    """Raise InvalidParameter for an answer that the agent would not understand."""
    questions = request.questions()
    if request.tool != QUESTION_TOOL and given.answers:
        raise InvalidParameter("The agent asks for a permission here, and not for answers.", field="answers")
    if given.decision is PermissionDecision.DENY or request.tool != QUESTION_TOOL:
        return
    if request.input_cut:
        raise InvalidParameter("The agent's questions are too long to be answered; deny the request.", field="answers")
    if missing := [each for each in questions if each not in given.answers]:
        raise InvalidParameter(f"The agent asks for answers; there is none to: {missing[0]}", field="answers")
    if strange := [each for each in given.answers if each not in questions]:
        raise InvalidParameter(f"The agent has not asked: {strange[0]}", field="answers")
