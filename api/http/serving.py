"""The server process: one application on two ports, that of REST and that of the WebSocket."""

from __future__ import annotations

import socket
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from foundation.settings import Settings

# A follower of a run's log holds its connection open for as long as the run lasts.
_GRACE_SECONDS = 3
# A slow client answers a ping only when it has read all that was sent before it.
_PING_SECONDS = 20.0
# Longer than clients keep a connection that nothing is sent on: where the server closes first, a request that is on its
# way meets the close, and whoever sent it cannot know whether it was carried out. Curl's 118 s are the longest.
IDLE_SECONDS = 130
_PONG_SECONDS = 180.0
_BACKLOG = 2048
# What the kernel takes for a client that reads nothing: of itself, it would hold megabytes for each.
_UNSENT_BYTES = 128 * 1024


class _WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's, which cannot close one that is just being closed, and leaves the server's end unfinished then."""

    def shutdown(self) -> None:
        with suppress(InvalidState):
            super().shutdown()
        self.transport.close()


def make_server(app: ASGIApp) -> uvicorn.Server:
    """The HTTP and WebSocket server of the application, for ``serve(sockets=listening(settings))``."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            ws=_WebSocket,
            log_config=None,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            timeout_keep_alive=IDLE_SECONDS,
            ws_ping_interval=_PING_SECONDS,
            ws_ping_timeout=_PONG_SECONDS,
            # Compressing costs more than loopback and log lines are worth.
            ws_per_message_deflate=False,
        )
    )


def listening(settings: Settings) -> list[socket.socket]:
    """Sockets that listen on the settings' two ports. Raises OSError when one of them is taken."""
    opened: list[socket.socket] = []
    family = socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET
    try:
        for port in dict.fromkeys((settings.api_port, settings.ws_port)):
            # Only of sockets that say they are TCP does asyncio ask to send at once (TCP_NODELAY): without it the
            # body of each answer waits for the acknowledgement of its head, 40 ms.
            opened.append(listener := socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
            listener.bind((settings.api_host, port))
            listener.listen(_BACKLOG)
    except OSError:
        for one in opened:
            one.close()
        raise
    return opened
