"""A guest's connection on which it speaks HTTP in the clear: read by uvicorn's parser, within the gateway's limits."""

from __future__ import annotations

import asyncio
import socket

from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from worker.egress.forward import Exchange
from worker.egress.passage import EgressLimits
from worker.egress.refusals import LINGER_SECONDS, Refusal, bad_request, too_slow
from worker.gateway.guest_connection import ConnectionLimits, ConnectionTable, GuestConnection

_EXCHANGE = "exchange"


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await scope["state"][_EXCHANGE].answer(scope, receive, send)


class HttpServer:
    """Serves guests' connections of HTTP, each with an exchange of its own."""

    def __init__(self, limits: EgressLimits) -> None:
        self._table = ConnectionTable(
            ConnectionLimits(
                for_each_machine=limits.for_each_machine,
                head_seconds=limits.head_seconds,
                stall_seconds=limits.idle_seconds,
                look_seconds=limits.head_seconds / 4,
            )
        )
        self._state = ServerState()
        self._config = Config(
            _answer,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=round(limits.idle_seconds) or 1,
            h11_max_incomplete_event_size=limits.head_bytes,
        )

    async def serve(self, guest: socket.socket, first: bytes, exchange: Exchange) -> None:
        """Serve the connection to its end, beginning with bytes that have been read from it. Raises OSError."""
        loop = asyncio.get_running_loop()

        def connection() -> HttpConnection:
            return HttpConnection(self._config, self._state, exchange, self._table, first)

        try:
            _, protocol = await loop.connect_accepted_socket(connection, guest)
            try:
                await protocol.ended
            finally:
                protocol.abort()
        finally:
            await exchange.close()


class HttpConnection(GuestConnection):
    """One connection. A refusal ends it, with an answer that has a sentence of its own as its reason phrase."""

    def __init__(
        self, config: Config, state: ServerState, exchange: Exchange, table: ConnectionTable, first: bytes
    ) -> None:
        machine = exchange.passage.machine
        super().__init__(config, state, {_EXCHANGE: exchange}, table=table, machine=machine.id)
        exchange.guest = self
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self._exchange = exchange
        self._first = first
        self._refused = False
        self._closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        first, self._first = self._first, b""
        if first and not self.transport.is_closing():
            self.data_received(first)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Whether the connection stays open: a guest that has sent its request whole still gets the answer."""
        if self._refused or self.awaits_request or self.cycle.more_body:
            return None
        self.cycle.keep_alive = False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._exchange.leave()
        if self._closing is not None:
            self._closing.cancel()
        if not self.ended.done():
            self.ended.set_result(None)

    def overdue(self) -> None:
        """A guest that has begun a request and does not go on is told; one that does not read is not."""
        if self.awaits_request and not self._refused and not self.transport.get_write_buffer_size():
            self.refuse(too_slow())
        else:
            self.abort()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- the sentence is our own
        """What came is no request, or no body."""
        if self.awaits_request or not self.cycle.response_started:
            self.refuse(bad_request("it is not as HTTP has it"))
        else:
            self.abort()
        self._exchange.stop()

    def refuse(self, refusal: Refusal) -> None:
        """Answer with the refusal, and take no more: what still comes is read, so that the answer is, and dropped."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._exchange.passage.machine.note(refusal)
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self.transport.write(refusal.answer())
        self.transport.write_eof()
        self._closing = self.loop.call_later(LINGER_SECONDS, self.abort)
