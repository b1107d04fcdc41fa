"""Steering the agent of a run, as both clients have it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from client.tasks.calls import Call, task_url
from client.tasks.replies import Answered, Cleared, Configured, Interrupted, OpenRequests, PermissionRequest, Waiting


class Steering(ABC):
    """What is said to a running agent beside messages. Nothing is told as done that the agent has not confirmed.

    Raises SessionClosed when the agent has ended, Conflict when it does not run yet, sleeps or refuses, TimedOut when
    it does not confirm in time, and may do it yet.
    """

    def interrupt(self, task_id: str) -> bool:
        """Stop what the agent does now; the run goes on. False when it did nothing that could be interrupted."""
        return Interrupted.model_validate(self._send(_interrupt(task_id))).interrupted

    def permission_requests(self, task_id: str) -> list[PermissionRequest]:
        """What the agent asks and waits for, oldest first."""
        return OpenRequests.model_validate(self._send(_requests(task_id))).permission_requests

    def answer(
        self,
        task_id: str,
        request_id: str,
        decision: str = "allow",
        *,
        message: str | None = None,
        answers: Mapping[str, str] | None = None,
    ) -> Answered:
        """Answer what the agent asks, once: ``allow``, ``allow_always`` or ``deny``, with a message to it.

        ``answers`` are those to its questions, by their text. Raises Conflict when the request is not open.
        """
        return Answered.model_validate(self._send(_answer(task_id, request_id, decision, message, answers)))

    def configure(self, task_id: str, *, model: str | None = None, permission_mode: str | None = None) -> Configured:
        """Change the agent's model or permission mode, from its next request to the model on."""
        return Configured.model_validate(self._send(_configure(task_id, model, permission_mode)))

    def messages(self, task_id: str) -> Waiting:
        """The messages that the agent has not got yet."""
        return Waiting.model_validate(self._send(_messages(task_id)))

    def clear_messages(self, task_id: str) -> Cleared:
        """Drop the messages that wait. One whose delivery is under way is named, and may arrive."""
        return Cleared.model_validate(self._send(_clear(task_id)))

    @abstractmethod
    def _send(self, call: Call) -> Any: ...


class AsyncSteering(ABC):
    """The same, awaited."""

    async def interrupt(self, task_id: str) -> bool:
        """Stop what the agent does now; the run goes on."""
        return Interrupted.model_validate(await self._send(_interrupt(task_id))).interrupted

    async def permission_requests(self, task_id: str) -> list[PermissionRequest]:
        """What the agent asks and waits for, oldest first."""
        return OpenRequests.model_validate(await self._send(_requests(task_id))).permission_requests

    async def answer(
        self,
        task_id: str,
        request_id: str,
        decision: str = "allow",
        *,
        message: str | None = None,
        answers: Mapping[str, str] | None = None,
    ) -> Answered:
        """Answer what the agent asks, once."""
        return Answered.model_validate(await self._send(_answer(task_id, request_id, decision, message, answers)))

    async def configure(
        self, task_id: str, *, model: str | None = None, permission_mode: str | None = None
    ) -> Configured:
        """Change the agent's model or permission mode."""
        return Configured.model_validate(await self._send(_configure(task_id, model, permission_mode)))

    async def messages(self, task_id: str) -> Waiting:
        """The messages that the agent has not got yet."""
        return Waiting.model_validate(await self._send(_messages(task_id)))

    async def clear_messages(self, task_id: str) -> Cleared:
        """Drop the messages that wait."""
        return Cleared.model_validate(await self._send(_clear(task_id)))

    @abstractmethod
    async def _send(self, call: Call) -> Any: ...


def _interrupt(task_id: str) -> Call:
    return Call("POST", f"{task_url(task_id)}/interrupt", reply=Interrupted)


def _requests(task_id: str) -> Call:
    return Call("GET", f"{task_url(task_id)}/permissions", reply=OpenRequests)


def _answer(
    task_id: str, request_id: str, decision: str, message: str | None, answers: Mapping[str, str] | None
) -> Call:
    body: dict[str, Any] = {"decision": decision}
    if message is not None:
        body["message"] = message
    if answers:
        body["answers"] = dict(answers)
    path = f"{task_url(task_id)}/permissions/{quote(request_id, safe='')}"
    return Call("POST", path, {"json": body}, Answered)


def _configure(task_id: str, model: str | None, permission_mode: str | None) -> Call:
    body = {"model": model, "permission_mode": permission_mode}
    given = {name: value for name, value in body.items() if value is not None}
    return Call("PATCH", f"{task_url(task_id)}/agent", {"json": given}, Configured)


def _messages(task_id: str) -> Call:
    return Call("GET", f"{task_url(task_id)}/messages", reply=Waiting)


def _clear(task_id: str) -> Call:
    return Call("DELETE", f"{task_url(task_id)}/messages", reply=Cleared)
