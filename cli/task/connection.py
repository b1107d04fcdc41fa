"""WebSockets of the command line to the server: opened within limits, with its token, and no redirect followed."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus

from client.refusals import refusal
from client.tasks.calls import headers, task_url, trust
from foundation.errors import ForeignServer, ServiceUnavailable
from foundation.urls import without_credentials

_CONNECT_SECONDS = 5.0
# The server has looked for the machine then, and its host has entered it.
_OPEN_SECONDS = 45.0
# A server that has gone is noticed after a minute: by what it does not acknowledge, whatever else waits to be read.
_PING_SECONDS = 20.0
_UNACKNOWLEDGED_MILLISECONDS = 60_000
_CLOSE_SECONDS = 2.0
_FRAME_BYTES = 2**20
_SUCCESS = 2


@dataclass(frozen=True)
class Server:
    """The server, and the token that goes to it."""

    address: str
    token: str | None

    @property
    def shown(self) -> str:
        """The address as it may be shown."""
        return without_credentials(self.address)

    def foreign(self) -> ForeignServer:
        """The error of a server that does not talk as one of ours does."""
        return ForeignServer(f"What answers at {self.shown} is not Taskyard, or another version of it.")


async def open_socket(server: Server, task_id: str, what: str, *, frames_held: int) -> ClientConnection:
    """A WebSocket to ``what`` of a run. At most ``frames_held`` frames are read before they are asked for.

    Raises ServiceUnavailable, ForeignServer, and what the server refuses.
    """
    address = server.address.rstrip("/")
    given = headers(server.token)
    away = ServiceUnavailable(
        f"The server at {server.shown} does not answer; start it with 'sandbox up', or name another with --server "
        "or TASKYARD_SERVER."
    )
    try:
        opened = await asyncio.wait_for(_dial(address), _CONNECT_SECONDS)
    except (OSError, TimeoutError) as error:
        raise away from error
    try:
        return await _Connect(
            f"ws{address[4:]}{task_url(task_id)}/{what}",
            sock=opened,
            additional_headers={name: value for name, value in given.items() if name != "User-Agent"},
            user_agent_header=given["User-Agent"],
            ssl=trust(address) if address.startswith("https:") else None,
            compression=None,
            open_timeout=_OPEN_SECONDS,
            ping_interval=_PING_SECONDS,
            ping_timeout=None,
            close_timeout=_CLOSE_SECONDS,
            max_size=_FRAME_BYTES,
            max_queue=frames_held,
        )
    except InvalidStatus as refused:
        answer = refused.response
        if answer.status_code // 100 == _SUCCESS:
            raise server.foreign() from None
        raise refusal(server.shown, answer.status_code, answer.headers, bytes(answer.body or b"")) from None
    except InvalidMessage as error:
        raise (away if isinstance(error.__cause__, EOFError | OSError) else server.foreign()) from error
    except InvalidHandshake as error:
        raise server.foreign() from error
    except (OSError, TimeoutError, EOFError) as error:
        raise away from error


class _Connect(connect):
    """Goes where it was told to go, and nowhere else: the token is for that server alone."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """No redirect is followed."""
        return exc


async def _dial(address: str) -> socket.socket:
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(parts.hostname or "", port, type=socket.SOCK_STREAM)
    failure: OSError | None = None
    for family, kind, protocol, _, where in found:
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setblocking(False)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MILLISECONDS)
            await loop.sock_connect(opened, where)
        except OSError as error:
            opened.close()
            failure = error
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise failure or OSError(f"{address} has no address")
