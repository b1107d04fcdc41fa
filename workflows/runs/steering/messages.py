"""What is said to steer an agent, and what it says: payloads of signals, updates and the query, within limits.

The payloads of the signals ``interrupt``, ``answer``, ``configure`` and ``clear_messages`` are public API
(docs/signals.md).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from workflows.messages import Message, Name, Sentence, cut

#: The tool by which the agent puts questions of its own to its user.
QUESTION_TOOL = "AskUserQuestion"

#: Characters of an id by which an agent asks: one that is longer could not be named, and is not asked for it.
REQUEST_ID_CHARS = 200
#: Characters of what is said to the agent with a denial, and of each answer to a question of its.
SAID_CHARS = 10_000
#: Answers to the questions of one request.
ANSWERS_MOST = 50
#: Characters of each message that is shown of those that wait.
_SHOWN_CHARS = 2_000

Said = Annotated[str, AfterValidator(lambda text: cut(text, SAID_CHARS))]


class PermissionDecision(StrEnum):
    """What may be answered when the agent asks for a permission."""

    ALLOW = "allow"
    ALLOW_ALWAYS = "allow_always"
    DENY = "deny"


class PermissionMode(StrEnum):
    """What Claude Code does without asking, by its own names."""

    DEFAULT = "default"
    ACCEPT_EDITS = "acceptEdits"
    PLAN = "plan"
    AUTO = "auto"
    DONT_ASK = "dontAsk"
    BYPASS = "bypassPermissions"


class PermissionOption(Message):
    """One of the answers that a request takes, and its name for people."""

    id: str
    name: Name


class PermissionRule(Message):
    """What ``allow_always`` allows from then on: a tool, or one use of it by Claude Code's own pattern."""

    tool: Name
    content: Sentence | None = None

    def __str__(self) -> str:
        """The rule as Claude Code writes it."""
        return f"{self.tool}({self.content})" if self.content else self.tool


class PermissionRequest(Message):
    """What the agent asks and waits for, until ``expires_at``; then it is denied.

    ``input`` is what the tool would get; where ``input_cut``, long parts of it are cut, and the run's log has all of
    it. A request of the tool ``AskUserQuestion`` is one for answers. ``rules`` are what ``allow_always`` would allow;
    where ``rules_cut``, Claude Code suggests others too, about which it will ask again.
    """

    request_id: str
    tool: Name
    input: dict[str, Any] = {}
    input_cut: bool = False
    description: Sentence | None = None
    tool_use_id: Name | None = None
    rules: list[PermissionRule] = []
    rules_cut: bool = False
    options: list[PermissionOption] = []
    asked_at: datetime
    expires_at: datetime | None = None

    def questions(self) -> list[str]:
        """The agent's questions, in their order, when it asks for answers."""
        asked = self.input.get("questions") if self.tool == QUESTION_TOOL else None
        texts = [each.get("question") for each in asked if isinstance(each, dict)] if isinstance(asked, list) else []
        return [text for text in texts if isinstance(text, str)]


# --- what is said to a run


class InterruptRequest(Message):
    """Payload of the signal ``interrupt``: the agent stops what it does now, and waits for the next message."""


class PermissionAnswer(Message):
    """Payload of the signal ``answer``: the answer to what the agent has asked, once for each request.

    ``message`` is told to the agent with a denial. ``answers`` are those to its own questions, by their text.
    """

    request_id: str
    decision: PermissionDecision = PermissionDecision.ALLOW
    message: Said | None = None
    answers: dict[str, Said] = Field(default={}, max_length=ANSWERS_MOST)


class Configuration(Message):
    """Payload of the signal ``configure``: another model or permission mode; what is left out stays as it is."""

    model: str | None = None
    permission_mode: str | None = None


class ClearRequest(Message):
    """Payload of the signal ``clear_messages``: those that wait are not delivered."""


# --- what a run answers


class Interrupted(Message):
    """The agent has confirmed. ``interrupted`` is false when it did nothing that could be interrupted."""

    interrupted: bool


class PermissionAnswered(Message):
    """The answer that counts. Not ``delivered``: the agent's machine sleeps, and gets it when it is awake."""

    request_id: str
    decision: PermissionDecision
    delivered: bool


class Configured(Message):
    """What of a configuration the agent has confirmed."""

    model: str | None = None
    permission_mode: str | None = None


class WaitingMessage(Message):
    """A message that the agent has not got yet; one that is being ``delivered`` now cannot be held back."""

    id: str
    text: Annotated[str, AfterValidator(lambda text: cut(text, _SHOWN_CHARS))]
    delivering: bool = False


class WaitingMessages(Message):
    """Answer of the query ``messages``: those that wait, in their order."""

    messages: list[WaitingMessage] = []


class Cleared(Message):
    """Ids of the messages that will not be delivered, and of the one whose delivery was under way and goes on."""

    cleared: list[str] = []
    delivering: str | None = None


# --- what the follower tells of the agent


class ControlAnswer(Message):
    """What the agent said to a control request of ours. ``in_turn``: it was at work then."""

    id: str
    error: Sentence | None = None
    in_turn: bool = False


class AgentSaid(Message):
    """Payload of the signal ``agent_said``, sent by the follower: requests, requests taken back, and answers."""

    asked: list[PermissionRequest] = []
    withdrawn: list[str] = []
    answered: list[ControlAnswer] = []
