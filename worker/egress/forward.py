"""Requests of HTTP in the clear, each decided on and sent on by itself: to a target that it names, or to a tunnel's.

What a guest sends is read once, by one parser, and written anew: no server behind can take it for something else.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Protocol

import httpcore
from starlette.types import Message, Receive, Scope, Send

from foundation.http_fields import Fields, end_to_end
from worker.egress.passage import EgressLimits, Passage
from worker.egress.policy import NotNamed, Target, target_of
from worker.egress.refusals import Refusal, bad_request, blocked, too_slow, unreachable
from worker.egress.upstream import CheckedBackend

#: Fields of a request. Each is looked into by itself, and no program writes that many.
FIELDS_MOST = 200

_HTTP_PORT = 80
_ABSOLUTE = re.compile(rb"http://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_STATUSES = range(200, 600)


class GuestSide(Protocol):
    """The guest's connection, as far as the exchange of requests on it needs it."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer with the refusal, and take no more."""

    def abort(self) -> None:
        """Break off."""


class Exchange:
    """The requests of one guest connection, one after the other; ``answer`` is the ASGI application for them.

    With ``remote``, a connection to the passage's target that is open already, every request is for that target.
    """

    def __init__(self, passage: Passage, limits: EgressLimits, remote: socket.socket | None = None) -> None:
        self.passage = passage
        self.guest: GuestSide | None = None
        self._fixed = passage.target
        self._remote = remote
        self._left = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._idle_seconds = idle = limits.idle_seconds
        self._timeouts = {"timeout": {"read": idle, "write": idle}}
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=1,
            keepalive_expiry=idle,
            network_backend=CheckedBackend(self._connect, passage.sent, passage.received),
        )

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert self.guest is not None  # noqa: S101 -- requests come from it
        self._task = asyncio.current_task()
        begun = False
        try:
            request = self._request(scope, receive)
            response = await self._pool.handle_async_request(request)
            try:
                if response.status not in _STATUSES:
                    raise self._broken(f"answers with the status {response.status}")
                begun = True
                await _pass_on(response, send)
            finally:
                await response.aclose()
        except Refusal as refusal:
            await self._refuse(refusal)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ConnectionError) as error:
            if begun:
                self.guest.abort()
                await self._until_left()
            else:
                await self._refuse(self._broken(_what_happened(error)))
        except asyncio.CancelledError:
            await self._until_left()
        finally:
            self._task = None

    def stop(self) -> None:
        """What is under way ends; the guest has been answered."""
        if self._task is not None:
            self._task.cancel()

    def leave(self) -> None:
        """The guest's connection is closed: nothing can be answered any more."""
        self._left.set()
        self.stop()

    async def close(self) -> None:
        """Close what leads out."""
        self.leave()
        await self._pool.aclose()
        if self._remote is not None:
            self._remote.close()

    def _request(self, scope: Scope, receive: Receive) -> httpcore.Request:
        """The request as it is to be sent on, when it may be. Raises Refusal."""
        headers: Fields = scope["headers"]
        target, resource = self._target(scope)
        if len(headers) > FIELDS_MOST:
            raise bad_request("it has too many fields")
        framed = [name for name, _ in headers if name in {b"content-length", b"transfer-encoding"}]
        if len(framed) > 1:
            raise bad_request("it says more than once where its body ends")
        named = next((value for name, value in headers if name == b"host"), None)
        if named is not None and _read(named.decode("latin-1")) != target:
            raise blocked(target.host, target.port, "the Host header names another one")
        self.passage.permit(target)
        injections = self.passage.machine.injections
        written = [scope["raw_path"] + b"?" + scope["query_string"], *(name + b": " + value for name, value in headers)]
        injections.refuse_placeholders(target, b"\n".join(written), "a request in the clear")
        sent = end_to_end(headers)
        if named is None:
            sent.append((b"host", _host_field(target)))
        if framed == [b"transfer-encoding"]:
            sent.append((b"transfer-encoding", b"chunked"))
        return httpcore.Request(
            scope["method"],
            httpcore.URL(scheme=b"http", host=target.host.encode(), port=target.port, target=resource),
            headers=sent,
            content=injections.searched(target, _body(receive, self._idle_seconds)) if framed else None,
            extensions=self._timeouts,
        )

    def _target(self, scope: Scope) -> tuple[Target, bytes]:
        """Where the request is to go, and what it asks for there. Raises Refusal."""
        written: bytes = scope["raw_path"]
        if scope["query_string"]:
            written += b"?" + scope["query_string"]
        if scope["method"] == "CONNECT":
            raise bad_request("CONNECT is the first request of a connection")
        match = _ABSOLUTE.fullmatch(written)
        if match is None:
            if self._fixed is None or not (written.startswith(b"/") or written == b"*"):
                raise bad_request("it does not begin with http://, and is not CONNECT")
            return self._fixed, written
        try:
            target = target_of(match[1].decode("latin-1"), _HTTP_PORT)
        except NotNamed as fault:
            raise blocked(fault.host, fault.port, str(fault)) from None
        if self._fixed is not None and target != self._fixed:
            raise blocked(target.host, target.port, f"the tunnel is for {self._fixed}")
        resource = match[2].partition(b"#")[0]
        return target, resource if resource.startswith(b"/") else b"/" + resource

    async def _connect(self, _host: str, _port: int) -> socket.socket:
        """The connection for the request that was permitted. Raises Refusal."""
        if self._remote is not None:
            opened, self._remote = self._remote, None
            return opened
        return await self.passage.open()

    async def _refuse(self, refusal: Refusal) -> None:
        assert self.guest is not None  # noqa: S101 -- requests come from it
        self.guest.refuse(refusal)
        await self._until_left()

    async def _until_left(self) -> None:
        """The server takes an application that returns without an answer for a fault, while the guest is there."""
        while not self._left.is_set():
            with suppress(asyncio.CancelledError):
                await self._left.wait()

    def _broken(self, happened: str) -> Refusal:
        target = self.passage.target
        host, port = (target.host, target.port) if target else ("", 0)
        return unreachable(host, port, f"{target} {happened}")


async def _pass_on(response: httpcore.Response, send: Send) -> None:
    headers = end_to_end(response.headers)
    if any(name.lower() == b"transfer-encoding" for name, _ in response.headers):
        headers = [field for field in headers if field[0].lower() != b"content-length"]
    start: Message = {"type": "http.response.start", "status": response.status, "headers": headers}
    await send(start)
    async for chunk in response.aiter_stream():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(receive: Receive, idle_seconds: float) -> AsyncIterator[bytes]:
    more = True
    while more:
        try:
            async with asyncio.timeout(idle_seconds):
                message = await receive()
        except TimeoutError:
            raise too_slow("body") from None
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the guest has left")
        if message.get("body"):
            yield message["body"]
        more = message.get("more_body", False)


def _read(host: str) -> Target | None:
    """The target that a Host header names; None for one that names none."""
    try:
        return target_of(host.strip(), _HTTP_PORT)
    except NotNamed:
        return None


def _host_field(target: Target) -> bytes:
    text = str(target)
    return text.removesuffix(f":{_HTTP_PORT}").encode()


def _what_happened(error: Exception) -> str:
    if isinstance(error, httpcore.TimeoutException):
        return "did not answer in time"
    if isinstance(error, httpcore.ProtocolError):
        return "does not answer as HTTP does"
    return "broke the connection off"
