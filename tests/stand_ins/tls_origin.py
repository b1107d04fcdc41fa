"""An origin of HTTP/2 and HTTP/1.1 over TLS, with an authority of its own, that remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
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
    #: Where its git repositories are, which it serves to whoever has these credentials.
    repositories: Path | None = None
    credentials: str = ""
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
            if record["complete"] and scope["path"].startswith("/git/"):
                await self._git(scope, record, _Answer(send, headers))
            elif record["complete"]:
                await _answer(_Answer(send, headers), scope["path"], record)

    async def _git(self, scope: Any, record: dict[str, Any], answer: _Answer) -> None:
        assert self.repositories is not None
        if record["headers"].get("authorization") != self.credentials:
            await answer.begin(b"text/plain", 0, 401, [(b"www-authenticate", b'Basic realm="git"')])
            await answer.part(b"", more=False)
            return
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.repositories),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": record["method"],
            "QUERY_STRING": scope["query_string"].decode(),
            "PATH_INFO": scope["path"].removeprefix("/git"),
            "REMOTE_USER": "agent",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": record["headers"].get("content-type", ""),
            "CONTENT_LENGTH": str(len(record["body"])),
            "HTTP_CONTENT_ENCODING": record["headers"].get("content-encoding", ""),
            "GIT_PROTOCOL": record["headers"].get("git-protocol", ""),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        done = await asyncio.to_thread(
            subprocess.run, ["git", "http-backend"], input=record["body"], env=environment, capture_output=True
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n"))
        status = int(fields.pop(b"Status", b"200").split()[0])
        await answer.begin(fields.pop(b"Content-Type"), len(content), status)
        await answer.part(content, more=False)


class _Answer:
    def __init__(self, send: Any, headers: dict[str, str]) -> None:
        self._send = send
        self._saw = headers.get("authorization", "none").encode("latin-1")

    async def begin(
        self, kind: bytes, length: int | None = None, status: int = 200, more: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        fields = [(b"content-type", kind), (b"x-saw", self._saw), *more]
        fields += [] if length is None else [(b"content-length", b"%d" % length)]
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

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
    directory.mkdir(exist_ok=True)
    authority = ensure_authority(directory, [host.removeprefix("*.")])
    (directory / "leaf.pem").write_bytes(authority.leaf(host))
    (directory / "authority.crt").write_text(authority.pem)
    return directory / "authority.crt"


@asynccontextmanager
async def tls_origin(directory: Path, address: str, host: str, protocols: tuple[str, ...]) -> AsyncIterator[Origin]:
    """Serve at the address, with a certificate for the host.

    /echo answers with what it was asked; /stream with a line for each piece of the body, as it comes; /large with
    1 MiB of bytes; /ws accepts a web socket and sends back what comes; all others with a short text.
    /git/ has the repositories of ``repositories``.
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
