"""The messages to a run's agent: those that wait, those that were given up, and the limits of both."""

from __future__ import annotations

import hashlib
from collections import deque

from foundation.units import format_size
from workflows.runs.messages import MESSAGE_BYTES, MESSAGE_ID_CHARS, UserMessage

# Messages that may wait at once, and that one run accepts: each costs its history some fifteen events.
WAITING_MOST = 100
MESSAGES_MOST = 1_500
# Ids of undelivered messages that a run's status names.
NAMED_MOST = 100

_DIGEST_CHARS = 16


class Inbox:
    """The queue of messages, each once. ``undelivered`` names those that were refused, cleared or given up.

    ``delivering`` is the id of the one that is being handed over now.
    """

    def __init__(self) -> None:
        self.undelivered: list[str] = []
        self.delivering: str | None = None
        self._waiting: deque[tuple[str, str]] = deque()
        self._known: set[str] = set()
        self._accepted = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def has_heard(self, message_id: str) -> bool:
        """Whether a message with this id came before."""
        return message_id in self._known

    def knows(self, message_id: str) -> bool:
        """The same; notes the id."""
        known = message_id in self._known
        self._known.add(message_id)
        return known

    @property
    def is_full(self) -> bool:
        """Whether as many were accepted as are for one run."""
        return self._accepted >= MESSAGES_MOST

    def refusal(self, message: UserMessage, *, closed: bool) -> str | None:
        """Why the message is refused, as a sentence; None when it is not."""
        if closed:
            return "A message that came after the session was closed was not delivered."
        if len(message.text.encode(errors="replace")) > MESSAGE_BYTES:
            return f"A message of more than {format_size(MESSAGE_BYTES)} was not delivered."
        if len(self._waiting) >= WAITING_MOST:
            return f"A message was not delivered because {WAITING_MOST} were waiting already."
        if self.is_full:
            return (
                f"A message was not delivered because the run had taken {MESSAGES_MOST} already, the most for one run."
            )
        return None

    def add(self, message_id: str, text: str) -> None:
        """Queue a message."""
        self._accepted += 1
        self._waiting.append((message_id, text))

    @property
    def waiting(self) -> list[tuple[str, str]]:
        """Ids and texts of those that wait, in their order."""
        return list(self._waiting)

    def begin_delivery(self) -> tuple[str, str]:
        """Id and text of the message whose turn it is; it is being delivered from now on."""
        self.delivering = self._waiting[0][0]
        return self._waiting[0]

    def clear(self) -> list[str]:
        """Drop those that wait, but not the one that is being delivered; their ids."""
        kept = [each for each in self._waiting if each[0] == self.delivering]
        cleared = [message_id for message_id, _ in self._waiting if message_id != self.delivering]
        self._waiting = deque(kept)
        for message_id in cleared:
            self.refuse(message_id)
        return cleared

    def delivered(self, message_id: str) -> None:
        """The first one has reached the agent, unless it was given up before that was known."""
        if self._waiting and self._waiting[0][0] == message_id:
            self._waiting.popleft()

    def give_up(self) -> None:
        """The first one will not be delivered."""
        self.refuse(self._waiting.popleft()[0])

    def refuse(self, message_id: str) -> None:
        """Name a message as undelivered, as long as not too many are."""
        if len(self.undelivered) < NAMED_MOST:
            self.undelivered.append(message_id)

    def give_up_all(self) -> None:
        """The agent has ended: what still waits is undelivered."""
        while self._waiting:
            self.give_up()


def short_id(message_id: str) -> str:
    """The id itself, or of one that is too long its beginning and a digest of all of it."""
    if len(message_id) <= MESSAGE_ID_CHARS:
        return message_id
    digest = hashlib.sha256(message_id.encode(errors="replace")).hexdigest()[:_DIGEST_CHARS]
    return f"{message_id[: MESSAGE_ID_CHARS - _DIGEST_CHARS - 1]}…{digest}"
