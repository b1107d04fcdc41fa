"""An origin of HTTP/2 and HTTP/1.1 over TLS, with an authority of its own, that remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypercorn.asyncio
from hypercorn.config import Config

from activities.machine.authority import ensure_authority


@dataclass
class Origin:
    """A running origin. ``asked`` has, for each request, what came of it."""

    port: int
    authority: Path
    asked: list[dict[str, Any]] = field(default_factory=list)

    def headers(self) -> dict[str, str]:
        """The headers of the last request."""
        return self.asked[-1]["headers"]

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """The application."""
        if scope["type"] == "lifespan":
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        record = {
            "version": scope["http_version"],
            "method": scope.get("method"),
            "path": scope["raw_path"].decode() + query,
            "headers": headers,
            "body": b"",
            "complete": False,
        }
        self.asked.append(record)
        if scope["type"] == "websocket":
            await _web_socket(receive, send)
        elif scope["path"] == "/stream":
            await _stream(_Answer(send, headers), receive, record)
        else:
            async for _ in _body(receive, record):
                pass
            if record["complete"]:
                await _answer(_Answer(send, headers), scope["path"], record)


class _Answer:
    def __init__(self, send: Any, headers: dict[str, str]) -> None:
        self._send = send
        self._saw = headers.get("authorization", "none").encode("latin-1")

    async def begin(self, kind: bytes, length: int | None = None) -> None:
        fields = [(b"content-type", kind), (b"x-saw", self._saw)]
        fields += [] if length is None else [(b"content-length", b"%d" % length)]
        await self._send({"type": "http.response.start", "status": 200, "headers": fields})

    async def part(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


async def _body(receive: Any, record: dict[str, Any]) -> AsyncIterator[bytes]:
    while (message := await receive())["type"] == "http.request":
        record["body"] += message.get("body", b"")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            record["complete"] = True
            return


async def _stream(answer: _Answer, receive: Any, record: dict[str, Any]) -> None:
    await answer.begin(b"text/event-stream")
    async for piece in _body(receive, record):
        if piece:
            await answer.part(b"data: %s\n\n" % piece)
    await answer.part(b"data: %s\n\n" % record["headers"].get("authorization", "none").encode())
    if "x-hold" in record["headers"]:
        await asyncio.Event().wait()
    await answer.part(b"", more=False)


async def _answer(answer: _Answer, path: str, record: dict[str, Any]) -> None:
    if path == "/large":
        await answer.begin(b"application/octet-stream", 2**20)
        for _ in range(16):
            await answer.part(bytes(2**16))
        await answer.part(b"", more=False)
        return
    echo = json.dumps({**record, "body": record["body"].decode("latin-1")}).encode()
    kind, text = (b"application/json", echo) if path == "/echo" else (b"text/plain", b"served")
    await answer.begin(kind, len(text))
    await answer.part(text, more=False)


def _prepare(directory: Path, host: str) -> Path:
    directory.mkdir()
    authority = ensure_authority(directory, [host])
    (directory / "leaf.pem").write_bytes(authority.leaf(host))
    (directory / "authority.crt").write_text(authority.pem)
    return directory / "authority.crt"


@asynccontextmanager
async def tls_origin(directory: Path, address: str, host: str, protocols: tuple[str, ...]) -> AsyncIterator[Origin]:
    """Serve at the address, with a certificate for the host.

    /echo answers with what it was asked; /stream with a line for each piece of the body, as it comes; /large with
    1 MiB of bytes; /ws accepts a web socket and sends back what comes; all others with a short text.
    """
    authority = await asyncio.to_thread(_prepare, directory, host)
    origin = Origin(0, authority)
    config = Config()
    config.bind = [f"{address}:0"]
    config.certfile = config.keyfile = str(directory / "leaf.pem")
    config.alpn_protocols = list(protocols)
    config.accesslog = config.errorlog = None
    sockets = config.create_sockets()
    config.create_sockets = lambda: sockets  # type: ignore[method-assign] # its port is asked for before it serves
    origin.port = sockets.secure_sockets[0].getsockname()[1]
    stopping = asyncio.Event()
    config.graceful_timeout = 0.1
    serving = asyncio.create_task(
        hypercorn.asyncio.serve(origin.serve, config, shutdown_trigger=stopping.wait, mode="asgi")
    )
    try:
        yield origin
    finally:
        stopping.set()
        await asyncio.gather(serving, return_exceptions=True)


async def _web_socket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
