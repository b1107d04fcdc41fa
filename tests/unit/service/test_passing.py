"""What a server passes between its clients and a machine's host: bodies, WebSockets, ends and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from api.deps import Services
from api.http.metrics import Metrics
from api.http.rates import Rates
from api.http.serving import listening, make_server
from api.machines.answer import HostAnswer
from api.native.machine import enter
from foundation.errors import MachineLost, TaskyardError
from foundation.settings import Settings
from tests.stack_settings import free_ports
from tests.stand_ins.host_site import HostSite, host_site
from tests.waiting import until
from worker.service.machine import machine_of

PIECE = b"z" * 65536
# The kernel's buffers of the connections on the way, and little more.
HELD_MOST = 16 * 2**20


@dataclass
class Seen:
    """What the host's end of the streams has come to."""

    received: int = 0
    sent: int = 0
    open: int = 0
    ended: int = 0


SEEN = Seen()
RELEASED = [asyncio.Event()]


async def _take(request: Request) -> Response:
    await machine_of(request, "files")
    SEEN.open += 1
    try:
        async for piece in request.stream():
            SEEN.received += len(piece)
    finally:
        SEEN.ended += 1
    return JSONResponse({"bytes": SEEN.received}, headers={"X-Secret": "inner", "ETag": '"e"'})


async def _give(request: Request) -> Response:
    await machine_of(request, "files")
    most = int(request.query_params["bytes"])

    async def pieces() -> AsyncIterator[bytes]:
        SEEN.open += 1
        try:
            while SEEN.sent < most:
                await asyncio.sleep(0)
                yield PIECE
                SEEN.sent += len(PIECE)
            if "fail" in request.query_params:
                raise MachineLost("it has ended")
        finally:
            SEEN.ended += 1

    return StreamingResponse(pieces(), media_type="application/octet-stream")


async def _talk(socket: WebSocket) -> None:
    await machine_of(socket, "processes")
    await socket.accept()
    SEEN.open += 1
    try:
        while True:
            text = await socket.receive_text()
            if text == "fail":
                raise MachineLost("it has ended")
            if text == "end":
                await socket.close(3001, "as asked")
                return
            if text == "flood":
                while True:
                    await socket.send_bytes(PIECE)
                    SEEN.sent += len(PIECE)
            if text == "take nothing":
                await RELEASED[0].wait()
            await socket.send_bytes(text.encode())
    except WebSocketDisconnect:
        pass
    finally:
        SEEN.ended += 1


HOST_ROUTES = (
    Route("/v1/machines/{machine_id}/files/take", _take, methods=["PUT"]),
    Route("/v1/machines/{machine_id}/files/give", _give),
    WebSocketRoute("/v1/machines/{machine_id}/talk", _talk),
)


@dataclass
class Server:
    """A server of a few routes over the host, with the ways of the real one."""

    port: int
    uvicorn: uvicorn.Server
    site: HostSite
    http: httpx.AsyncClient

    @asynccontextmanager
    async def socket(self, **options: Any) -> AsyncIterator[ClientConnection]:
        async with connect(
            f"ws://127.0.0.1:{self.port}/attach", compression=None, close_timeout=0.1, **options
        ) as socket:
            yield socket


@pytest.fixture
async def server(home: Path) -> AsyncIterator[Server]:
    for name in vars(SEEN):
        setattr(SEEN, name, 0)
    RELEASED[0] = asyncio.Event()
    port = free_ports(1)
    settings = Settings(home=home, host_name="host-a", api_port=port, ws_port=port)
    async with host_site(settings, HOST_ROUTES) as site:
        find = site.found()
        machines = SimpleNamespace(finder=lambda _: find)
        services = SimpleNamespace(
            settings=settings,
            rates=Rates({"stream": 3}),
            metrics=Metrics(lambda: 0),
            hosts=site.hosts,
            machines=machines,
        )

        async def passed(request: Request) -> Response:
            name, query = request.path_params["name"], dict(request.query_params)
            body = request.method == "PUT"
            return HostAnswer(site.hosts, find, "files", request.method, ("files", name), params=query, body=body)

        async def attach(socket: WebSocket) -> None:
            await enter(socket, cast("Services", services), "one", "processes", ("talk",))

        async def refused(_: Request, error: Exception) -> Response:
            assert isinstance(error, TaskyardError)
            return JSONResponse({"error": error.code}, status_code=error.http_status)

        app = Starlette(
            routes=[Route("/{name}", passed, methods=["GET", "PUT"]), WebSocketRoute("/attach", attach)],
            exception_handlers={TaskyardError: refused},
        )
        serving = make_server(app)
        task = asyncio.create_task(serving.serve(sockets=listening(settings)))

        async def started() -> bool:
            return serving.started

        await until(started, "the server to start")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            yield Server(port, serving, site, http)
        serving.should_exit = True
        await task


async def _all_ended() -> None:
    async def ended() -> bool:
        return SEEN.open == SEEN.ended

    await until(ended, "the host's ends of the streams to end", patience=10)


async def _at_rest(moved: Callable[[], int]) -> int:
    """How much has moved when nothing does any more, however often whoever can go on does."""
    for _ in range(100):
        held = moved()
        for _ in range(2000):
            await asyncio.sleep(0)
        if held == moved():
            return held
    pytest.fail("it never came to rest")


async def test_bodies_pass_whole_both_ways_with_what_says_what_they_are(server: Server) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield PIECE

    taken = await server.http.put("/take", content=body())
    assert (taken.status_code, taken.json()) == (200, {"bytes": 200 * len(PIECE)})
    assert taken.headers["etag"] == '"e"'
    assert "x-secret" not in taken.headers
    given = await server.http.get("/give", params={"bytes": 200 * len(PIECE)})
    assert (len(given.content), given.headers["content-type"]) == (200 * len(PIECE), "application/octet-stream")


async def test_an_error_before_the_answer_is_told_and_one_in_it_cuts_it_off(server: Server) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await server.http.get("/give", params={"bytes": len(PIECE), "fail": "1"})
    server.site.machines.add(epoch="e2")
    stale = await server.http.get("/give", params={"bytes": 1})
    assert (stale.status_code, stale.json()) == (421, {"error": "stale_epoch"})


async def test_a_client_that_leaves_ends_what_it_began(server: Server) -> None:
    async with server.http.stream("GET", "/give", params={"bytes": 2**40}) as answer:
        async for _ in answer.aiter_raw():
            break
    await _all_ended()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield PIECE

    sending = asyncio.create_task(server.http.put("/take", content=endless()))

    async def begun() -> bool:
        return SEEN.received > 2**20

    await until(begun, "the body to arrive")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await _all_ended()
    async with server.socket() as socket:
        await socket.send("hello")
        assert await socket.recv() == b"hello"
    await _all_ended()


async def test_a_client_that_takes_nothing_holds_up_its_stream_alone(server: Server) -> None:
    async with server.socket(max_queue=1) as slow, server.socket() as other:
        await slow.send("flood")
        assert 0 < await _at_rest(lambda: SEEN.sent) < HELD_MOST
        await other.send("hello")
        assert await other.recv() == b"hello"
        async with server.http.stream("GET", "/give", params={"bytes": 2**40}):
            assert await _at_rest(lambda: SEEN.sent) < 2 * HELD_MOST
    await _all_ended()


async def test_a_machine_that_takes_nothing_holds_up_who_sends(server: Server) -> None:
    async with server.socket() as socket:
        await socket.send("take nothing")
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await socket.send(PIECE)
                sent += len(PIECE)

        sending = asyncio.create_task(send())
        assert 0 < await _at_rest(lambda: sent) < HELD_MOST
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        socket.transport.abort()
        RELEASED[0].set()
    await _all_ended()


ENDS = {
    "end": (3001, "as asked", None),
    "fail": (4410, "it has ended", "machine_lost"),
    "x" * (2**20 + 1): (None, None, None),
}


@pytest.mark.parametrize("word", ENDS, ids=lambda word: word[:4])
async def test_the_hosts_end_of_a_websocket_is_the_clients(word: str, server: Server) -> None:
    code, reason, error = ENDS[word]
    async with server.socket() as socket:
        await socket.send(word)
        if error:
            assert json.loads(await socket.recv())["error"]["error"] == error
        elif code is None:
            # More than one frame may hold.
            assert json.loads(await socket.recv())["error"]["error"] == "payload_too_large"
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        if code is not None:
            assert (socket.close_code, socket.close_reason) == (code, reason)
    await _all_ended()


REFUSALS = {
    "stale": (lambda site: site.machines.add(epoch="e2"), {}, 4421, "stale_epoch"),
    "dead": (lambda site: site.machines.dead.add("vm-0000000000000001"), {}, 4410, "machine_lost"),
    "paused": (lambda site: site.machines.add(state="paused"), {}, 4409, "machine_unavailable"),
    "another page": (lambda _: None, {"origin": "https://elsewhere.example"}, 4403, "origin_refused"),
}


@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_refusal_is_a_frame_and_a_code_that_a_browser_sees(kind: str, server: Server) -> None:
    fault, options, code, error = REFUSALS[kind]
    fault(server.site)
    async with server.socket(**cast("dict[str, Any]", options)) as socket:
        assert json.loads(await socket.recv())["error"]["error"] == error
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == code


async def test_one_client_has_as_many_streams_as_the_settings_say(server: Server) -> None:
    async with server.socket() as one, server.socket() as two, server.socket() as three:
        for socket in (one, two, three):
            await socket.send("hello")
            await socket.recv()
        async with server.socket() as four:
            assert json.loads(await four.recv())["error"]["error"] == "rate_limit_exceeded"


async def test_a_worker_that_goes_away_is_told_and_a_server_that_ends_ends_its_streams(server: Server) -> None:
    async with server.socket() as socket, server.socket() as other:
        for each in (socket, other):
            await each.send("hello")
            await each.recv()
        await server.site.stop()
        for each in (socket, other):
            assert json.loads(await each.recv())["error"]["error"] == "host_unreachable"
            with pytest.raises(ConnectionClosed):
                await each.recv()
            assert each.close_code == 4503
    await server.site.start()
    async with server.socket() as socket, server.http.stream("GET", "/give", params={"bytes": 2**40}) as answer:
        await socket.send("hello")
        await socket.recv()
        server.uvicorn.should_exit = True
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in answer.aiter_raw():
                pass
    await _all_ended()
