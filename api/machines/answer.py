"""An answer that comes from a machine's host: bodies are streamed both ways, as fast as the slower end takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.machines.hosts import Find, Hosts, Params
from foundation.errors import TaskyardError
from foundation.service.tokens import Purpose

# A client that takes nothing of its answer for so long is not waited for.
_STALL_SECONDS = 180.0
#: What of a request says what its body is, and what of an answer says so.
ASKED = ("content-type", "content-length", "range", "if-range", "if-match", "if-none-match")
TOLD = (
    *("content-type", "content-length", "content-range", "content-disposition", "accept-ranges", "etag"),
    *("last-modified", "retry-after", "x-checksum-sha256"),
)

_log = structlog.get_logger(__name__)


class HostAnswer(Response):
    """What the machine's host answers to a request for ``parts`` of the machine's path, passed through.

    With ``body``, that of the client's request goes there. Of the host's headers those of ``told`` are passed on.
    Errors are raised before the answer has begun; one that comes later cuts the answer off.
    """

    def __init__(
        self,
        hosts: Hosts,
        find: Find,
        purpose: Purpose,
        method: str,
        parts: Sequence[str],
        *,
        params: Params = None,
        headers: Mapping[str, str] | None = None,
        body: bool = False,
        told: Sequence[str] = TOLD,
    ) -> None:
        super().__init__()
        self._hosts = hosts
        self._asked = (find, purpose, method, parts)
        self._params = params
        self._said = headers
        self._body = body
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 -- as of each answer
        leaving: asyncio.Timeout | None = None
        begun = False
        try:
            async with asyncio.timeout(None) as leaving:
                client = _Client(receive, leaving)
                content = client.body() if self._body else None
                if content is None:
                    client.look_out()
                try:
                    async with self._hosts.asked(
                        *self._asked, params=self._params, headers=self._said, content=content
                    ) as response:
                        head = [
                            (name.lower(), value) for name, value in response.headers.raw
                            if name.lower().decode("latin-1") in self._told
                        ]  # fmt: skip
                        begun = True
                        await send({"type": "http.response.start", "status": response.status_code, "headers": head})
                        async for piece in response.aiter_raw():
                            async with asyncio.timeout(_STALL_SECONDS):
                                await send({"type": "http.response.body", "body": piece, "more_body": True})
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
                finally:
                    client.stop()
        except ClientDisconnect:
            return
        except TimeoutError:
            if leaving is None or not leaving.expired():
                _log.info("a client took nothing of its answer for too long")
        except TaskyardError as error:
            if not begun:
                raise
            _log.warning("an answer was cut off", code=error.code, message=error.message)


class _Client:
    """The client's end of a request: its body, and then the moment in which it leaves, which ends ``leaving``."""

    def __init__(self, receive: Receive, leaving: asyncio.Timeout) -> None:
        self._receive = receive
        self._leaving = leaving
        self._looking: asyncio.Task[None] | None = None

    async def body(self) -> AsyncIterator[bytes]:
        """Raises ClientDisconnect when the client leaves before the body is whole."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if piece := message.get("body", b""):
                yield piece
            if not message.get("more_body", False):
                break
        self.look_out()

    def look_out(self) -> None:
        """From here on, look out for the client's leaving; what else it sends means nothing."""
        self._looking = asyncio.create_task(self._until_left())

    def stop(self) -> None:
        """Look out no more."""
        if self._looking is not None:
            self._looking.cancel()

    async def _until_left(self) -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await self._receive()
        with suppress(RuntimeError):  # it is over already
            self._leaving.reschedule(asyncio.get_running_loop().time())
