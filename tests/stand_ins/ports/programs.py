"""Programs that listen on a machine's ports: one that speaks HTTP and WebSockets well, and those that do not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

BLOB = bytes(range(256)) * 4096


async def _seen(request: Request) -> Response:
    """What of the request has come."""
    return JSONResponse(
        {
            "method": request.method,
            "target": request.scope["raw_path"].decode() + "?" + request.scope["query_string"].decode(),
            "fields": [[name.decode(), value.decode()] for name, value in request.headers.raw],
            "body": len(await request.body()),
        }
    )


class _Echo:
    """The body, as it comes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})


async def _events(request: Request) -> Response:
    async def events() -> AsyncIterator[str]:
        try:
            yield "data: first\n\n"
            await request.app.state.more.wait()
            yield "data: second\n\n"
        finally:
            request.app.state.left.set()

    return StreamingResponse(events(), media_type="text/event-stream")


async def _told(request: Request) -> Response:
    """An answer with the fields that the query names."""
    answer = Response(b"told", int(request.query_params.get("status", "200")))
    answer.raw_headers += [
        (name.encode(), value.encode()) for name, value in request.query_params.multi_items() if name != "status"
    ]
    return answer


async def _blob(request: Request) -> Response:
    """Bytes of which a part may be asked for."""
    begin, _, end = request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
    part = BLOB[int(begin) : int(end) + 1 if end else len(BLOB)]
    headers = {"Content-Range": f"bytes {begin}-{int(begin) + len(part) - 1}/{len(BLOB)}", "ETag": '"blob"'}
    if request.headers.get("if-none-match") == '"blob"':
        return Response(status_code=304, headers={"ETag": '"blob"'})
    return Response(part, 206 if "range" in request.headers else 200, headers)


async def _elsewhere(request: Request) -> Response:
    return RedirectResponse(request.query_params["to"])


async def _socket(socket: WebSocket) -> None:
    """Every message back, and its code on a close; a sub-protocol of ours if there is one."""
    if "refuse" in socket.query_params:
        await socket.send_denial_response(Response("not now", 418, {"X-Program": "socket"}))
        return
    await socket.accept("echo.v1" if "echo.v1" in socket.scope["subprotocols"] else None)
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                socket.app.state.codes.append(message.get("code"))
                return
            if message.get("text") == "close":
                await socket.close(4321, "as asked")
                return
            if message.get("text") is not None:
                await socket.send_text(message["text"])
            else:
                await socket.send_bytes(message["bytes"])
    except WebSocketDisconnect:
        return


class Program(uvicorn.Server):
    """A program that speaks HTTP, on a free port, in the running event loop."""

    def __init__(self) -> None:
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
        self.app = Starlette(
            routes=[
                Route("/echo", _Echo()),
                Route("/events", _events),
                Route("/told", _told, methods=methods),
                Route("/blob", _blob),
                Route("/elsewhere", _elsewhere),
                WebSocketRoute("/socket", _socket),
                Route("/{path:path}", _seen, methods=methods),
            ]
        )
        self.app.state.more, self.app.state.left = asyncio.Event(), asyncio.Event()
        self.app.state.codes = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        super().__init__(
            uvicorn.Config(
                self.app, log_config=None, ws_ping_interval=None, timeout_graceful_shutdown=1, lifespan="off"
            )
        )

    def install_signal_handlers(self) -> None:
        """None: this is a test's process."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.serve(sockets=[self._socket]))
        while not self.started:  # noqa: ASYNC110 -- the server has no event for it
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.should_exit = True
        await self._task
        self._socket.close()


@asynccontextmanager
async def answering(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]) -> AsyncIterator[int]:
    """A program that does as it likes with each connection; its port."""

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            done = serve(reader, writer)
            if asyncio.iscoroutine(done):
                await done
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def saying(answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
    """Reads a request's head, and says this whatever was asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    return serve
