"""One request to a program in a machine, and its answer: HTTP/1.1 over a tunnel, both bodies passed on as they come.

What the guest answers is hostile until h11 has read it: it is parsed whole, within limits, and written anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import h11
import structlog
from starlette.types import Message, Receive, Scope, Send

from api.machines.hosts import Find, Hosts
from api.machines.ports.fields import Way, answer_fields, request_fields
from api.machines.ports.tunnel import Tunnel, tunnel
from foundation.errors import GuestAnswerInvalid, TaskyardError, TimedOut

#: What the head of an answer has at most.
HEAD_BYTES = 64 * 1024
# A program may think for long before it answers, and an answer may be a stream in which little happens.
_ANSWER_SECONDS = 600.0
_IDLE_SECONDS = 3600.0
#: Another protocol is spoken from here on.
SWITCHED = 101
_FIELDS_MOST = 500
#: Those that an answer has.
STATUSES = range(200, 600)

_log = structlog.get_logger(__name__)


class PortAnswer:
    """What a program at a port of a machine answers to the request of ``scope``: an ASGI application.

    ``target`` is the path with its query as the program gets it. Errors are raised before the answer has begun; one
    that comes later cuts it off.
    """

    def __init__(self, hosts: Hosts, find: Find, way: Way, target: bytes) -> None:
        self._hosts = hosts
        self._find = find
        self._way = way
        self._target = target

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises PortRefused, GuestAnswerInvalid, TimedOut, and what ``Hosts.socket`` raises."""
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with tunnel(self._hosts, self._find, self._way.port) as opened:
                await _Exchange(opened, self._way, scope["method"]).run(scope, self._target, receive, send_on)
        except TaskyardError as error:
            if not begun:
                raise
            # The server ends the connection of an answer that is not whole.
            _log.info("the answer of a program in a machine was cut off", code=error.code, message=error.message)


class _Exchange:
    def __init__(self, opened: Tunnel, way: Way, method: str) -> None:
        self._tunnel = opened
        self._way = way
        self._method = method
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._limit = asyncio.timeout(_ANSWER_SECONDS)
        self._seconds = _ANSWER_SECONDS

    async def run(self, scope: Scope, target: bytes, receive: Receive, send: Send) -> None:
        """Pass the request on, and the answer back as it comes, also before the request is whole."""
        try:
            head = request_head(scope, self._way, target)
        except h11.LocalProtocolError as error:
            raise GuestAnswerInvalid(f"The request cannot be passed on as it is: {error}") from error
        answering: asyncio.Task[None] | None = None
        asking: asyncio.Task[None] | None = None
        try:
            async with self._limit:
                await self._tunnel.write(self._written(head))
                asking = asyncio.create_task(self._ask(head, receive))
                answering = asyncio.create_task(self._answer(send))
                await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    fault = asking.exception()
                    if fault is None:
                        return  # the client has left
                    if not isinstance(fault, TaskyardError):
                        raise fault
                # A program that takes no more of the request may have said why.
                await answering
        except TimeoutError:
            raise TimedOut(
                f"What listens on port {self._way.port} in the machine said nothing for {self._seconds:g} s"
            ) from None
        finally:
            tasks = [task for task in (asking, answering) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, head: h11.Request, receive: Receive) -> None:
        """Send the body. Returns when the client has left."""
        more = any(name in {b"content-length", b"transfer-encoding"} for name, _ in head.headers)
        if not more:
            self._http.send(h11.EndOfMessage())
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if not more:
                continue
            self._keep()
            more = message.get("more_body", False)
            data = self._written(h11.Data(data=message["body"])) if message.get("body") else b""
            if not more:
                data += self._written(h11.EndOfMessage())
            await self._tunnel.write(data)

    async def _answer(self, send: Send) -> None:
        try:
            await self._pass_on(send)
        except h11.RemoteProtocolError as error:
            raise self._invalid(f"does not answer as HTTP/1.1 has it ({error})") from error

    async def _pass_on(self, send: Send) -> None:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._tunnel.read()
                self._keep()
                self._http.receive_data(data)
            elif isinstance(event, h11.Response):
                if event.status_code not in STATUSES or len(event.headers) > _FIELDS_MOST:
                    raise self._invalid("gives an answer that no browser takes")
                self._seconds = _IDLE_SECONDS
                self._keep()
                fields = answer_fields(list(event.headers), self._way)
                await send({"type": "http.response.start", "status": event.status_code, "headers": fields})
            elif isinstance(event, h11.Data):
                await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
                self._keep()
            elif isinstance(event, h11.EndOfMessage):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            elif isinstance(event, h11.InformationalResponse):
                if event.status_code == SWITCHED:
                    raise self._invalid("changes to a protocol that nobody asked for")
            else:
                raise self._invalid("ended the connection without an answer")

    def _written(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""

    def _keep(self) -> None:
        with suppress(RuntimeError):  # it has expired just now
            self._limit.reschedule(asyncio.get_running_loop().time() + self._seconds)

    def _invalid(self, what: str) -> GuestAnswerInvalid:
        return GuestAnswerInvalid(f"What listens on port {self._way.port} in the machine {what}", port=self._way.port)


def request_head(scope: Scope, way: Way, target: bytes, extra: Mapping[bytes, bytes] | None = None) -> h11.Request:
    """The request as the program gets it. Raises h11.LocalProtocolError for what HTTP does not have."""
    fields = request_fields(scope["headers"], way, upgrade=bool(extra))
    if extra:
        fields += extra.items()
    else:
        # One request is all that a connection carries.
        fields.append((b"connection", b"close"))
        named = dict(scope["headers"])
        if b"transfer-encoding" in named:
            fields.append((b"transfer-encoding", b"chunked"))
        elif b"content-length" in named:
            fields.append((b"content-length", named[b"content-length"]))
    return h11.Request(method=scope.get("method", "GET"), target=target, headers=fields)
