"""The host's service and a server's connections to it: who is let in, what each fault is told as, and streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from inspect import isawaitable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed

from foundation.errors import (
    BucketUnavailable,
    GuestUnreachable,
    HostUnreachable,
    MachineLost,
    MachineUnavailable,
    NotFound,
    StaleEpoch,
    TaskyardError,
    Unauthorized,
)
from foundation.service.paths import machine_path
from foundation.service.tokens import authorization, make_token
from foundation.settings import Settings
from machines.records import MachineRecord
from storage.hosts import say_room, withdraw
from tests.stack_settings import free_ports
from tests.stand_ins.host_site import MACHINE, HostSite, host_site
from tests.waiting import until
from worker.service.machine import machine_of

OTHER = "vm-0000000000000002"
HERE = machine_path(MACHINE)


async def _echo(request: Request) -> Response:
    machine = await machine_of(request, "files")
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return JSONResponse({"machine": machine.id, "bytes": size, "query": dict(request.query_params)})


async def _flood(request: Request) -> Response:
    await machine_of(request, "files")
    state = request.app.state

    async def pieces() -> AsyncIterator[bytes]:
        state.ended = False
        state.sent = 0
        try:
            while True:
                await asyncio.sleep(0)
                yield b"x" * 65536
                state.sent += 65536
        finally:
            state.ended = True

    return StreamingResponse(pieces())


async def _talk(socket: WebSocket) -> None:
    machine = await machine_of(socket, "processes")
    await socket.accept()
    machine.note_access("exec", "somebody ran true")
    try:
        while (text := await socket.receive_text()) != "end":
            if text == "fail":
                raise MachineLost("it has ended")
            await socket.send_bytes(text.encode())
        await socket.close()
    except WebSocketDisconnect:
        socket.app.state.left = True


ROUTES = (
    Route("/v1/machines/{machine_id}/files/echo", _echo, methods=["PUT"]),
    Route("/v1/machines/{machine_id}/files/flood", _flood),
    WebSocketRoute("/v1/machines/{machine_id}/talk", _talk),
)


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home, host_name="host-a")


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[HostSite]:
    async with host_site(settings, ROUTES) as running:
        yield running


def token(settings: Settings, **fields: Any) -> str:
    right: dict[str, Any] = {"host": settings.host_name, "subject": MACHINE, "purpose": "machine"}
    key = fields.pop("key", settings.service_key())
    return authorization(make_token(key, **right | fields))


FORGED: dict[str, Callable[[Settings], str | None]] = {
    "none": lambda _: None,
    "empty": lambda _: "",
    "no token": lambda _: "Bearer x",
    "another scheme": lambda settings: token(settings).replace("Bearer ", "Basic "),
    "another key": lambda settings: token(settings, key=b"k" * 40),
    "another host": lambda settings: token(settings, host="host-b"),
    "another machine": lambda settings: token(settings, subject=OTHER),
    "another purpose": lambda settings: token(settings, purpose="files"),
    "expired": lambda settings: token(settings, now=time.time() - 200),
    "of the future": lambda settings: token(settings, now=time.time() + 200),
    "a later end": lambda settings: token(settings).replace("Bearer 1", "Bearer 9"),
    "cut": lambda settings: token(settings)[:-1],
    "not ASCII": lambda settings: token(settings).replace(".", ".é"),
}


async def test_a_request_without_the_token_for_just_this_is_refused(site: HostSite) -> None:
    transport = httpx.AsyncHTTPTransport(uds=str(site.settings.sockets / "host.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as http:
        for kind, forge in FORGED.items():
            value = forge(site.settings)
            headers = {} if value is None else {"Authorization": value.encode()}
            for machine in (HERE, machine_path("vm-ffffffffffffffff")):
                answer = await http.get(machine, headers=headers)
                assert (kind, answer.status_code, answer.json()["error"]) == (kind, 401, "unauthorized")
        good = await http.get(HERE, headers={"Authorization": token(site.settings)})
        assert (good.status_code, good.json()["epoch"]) == (200, "e1")


async def test_clocks_may_be_apart_by_half_a_minute(site: HostSite) -> None:
    transport = httpx.AsyncHTTPTransport(uds=str(site.settings.sockets / "host.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as http:
        for apart in (-85, 25):
            answer = await http.get(HERE, headers={"Authorization": token(site.settings, now=time.time() + apart)})
            assert answer.status_code == 200


def _gone(site: HostSite) -> None:
    site.machines.known.clear()


def _changed(**fields: Any) -> Callable[[HostSite], MachineRecord]:
    return lambda site: site.machines.add(**fields)


async def _stopped(site: HostSite) -> None:
    await site.stop()


FAULTS: dict[str, tuple[Callable[[HostSite], Any], type[TaskyardError]]] = {
    "started anew": (_changed(epoch="e2"), StaleEpoch),
    "started anew by a host of before": (_changed(epoch=None), StaleEpoch),
    "dead": (lambda site: site.machines.dead.add(MACHINE), MachineLost),
    "being destroyed": (_changed(state="destroying"), MachineLost),
    "gone": (_gone, MachineLost),
    "paused": (_changed(state="paused"), MachineUnavailable),
    "mute": (lambda site: site.machines.mute.add(MACHINE), GuestUnreachable),
    "withdrawn": (_stopped, HostUnreachable),
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_each_fault_is_an_answer_of_its_own(kind: str, site: HostSite) -> None:
    fault, error = FAULTS[kind]
    if (doing := fault(site)) is not None and isawaitable(doing):
        await doing
    with pytest.raises(error) as told:
        async with site.hosts.asked(site.found(), "files", "PUT", ("files", "echo"), content=b"x"):
            pass
    with pytest.raises(error):
        async with site.hosts.socket(site.found(), "processes", ("talk",)):
            pass
    # Only what may have changed since it was known is looked up again, and once.
    looked = [False] if error in {HostUnreachable, GuestUnreachable} else [False, True]
    assert site.looks == looked * 2
    assert type(told.value) is error


async def test_a_machine_that_was_started_anew_is_looked_up_again(site: HostSite) -> None:
    site.machines.add(epoch="e2")
    known = (site.reference(), site.reference(epoch="e2"))
    async with site.hosts.asked(site.found(*known), "files", "PUT", ("files", "echo"), content=b"abc") as answer:
        assert (await answer.aread()).startswith(b'{"machine":"vm-0000000000000001","bytes":3')
    async with site.hosts.socket(site.found(*known), "processes", ("talk",)) as socket:
        await socket.send("hello")
        assert await socket.recv() == b"hello"


async def test_a_machine_without_an_epoch_is_not_checked_for_one(site: HostSite) -> None:
    assert await site.hosts.confirmed(site.found(site.reference(epoch=None))) == site.reference(epoch=None)


async def test_what_a_host_of_another_version_lacks_is_told_so(site: HostSite) -> None:
    with pytest.raises(NotFound, match="another version"):
        async with site.hosts.asked(site.found(), "files", "GET", ("news",)):
            pass


async def test_a_streamed_body_is_not_begun_for_a_machine_that_is_not_there(site: HostSite) -> None:
    begun = []

    async def body() -> AsyncIterator[bytes]:
        begun.append(True)
        for _ in range(100):
            yield b"y" * 65536

    site.machines.add(epoch="e2")
    with pytest.raises(StaleEpoch):
        async with site.hosts.asked(site.found(), "files", "PUT", ("files", "echo"), content=body()):
            pass
    assert not begun
    known = (site.reference(), site.reference(epoch="e2"))
    async with site.hosts.asked(site.found(*known), "files", "PUT", ("files", "echo"), content=body()) as answer:
        assert b'"bytes":6553600' in await answer.aread()


async def test_an_error_that_ends_a_websocket_is_its_last_frame_and_its_code(site: HostSite) -> None:
    async with site.hosts.socket(site.found(), "processes", ("talk",)) as socket:
        await socket.send("fail")
        assert b"machine_lost" in str(await socket.recv()).encode()
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (4410, "it has ended")


async def _turns() -> None:
    """Many turns of the loop, in which whoever can go on does."""
    for _ in range(2000):
        await asyncio.sleep(0)


async def test_a_reader_that_takes_nothing_holds_up_who_writes_and_one_who_leaves_ends_it(site: HostSite) -> None:
    assert site.service
    state = site.service.application.state
    async with site.hosts.asked(site.found(), "files", "GET", ("files", "flood")) as answer:
        assert answer.status_code == 200
        await _turns()
        held = state.sent
        await _turns()
        assert held == state.sent < 2**20
        assert not state.ended

    async def ended() -> bool:
        return bool(state.ended)

    await until(ended, "the writer to end")


async def test_a_worker_that_stops_and_starts_is_found_again(site: HostSite) -> None:
    async def read() -> None:
        async with site.hosts.asked(site.found(), "files", "GET", ("files", "flood")) as answer:
            await site.stop()
            async for _ in answer.aiter_raw():
                pass

    with pytest.raises(HostUnreachable):
        await read()
    with pytest.raises(HostUnreachable):
        await site.hosts.confirmed(site.found())
    await site.start()
    assert await site.hosts.confirmed(site.found()) == site.reference()


@pytest.fixture
async def elsewhere(home: Path, tmp_path: Path) -> AsyncIterator[HostSite]:
    """The service as a server of another host has it."""
    listen = f"127.0.0.1:{free_ports(1)}"
    settings = Settings(home=home, host_name="host-a", host_listen=listen, host_key="k" * 40)
    async with host_site(settings, ROUTES, home=tmp_path, host_name="api", host_key="k" * 40) as site:
        yield site


AWAY: dict[str, Callable[[HostSite], Any]] = {
    "withdrawn": lambda site: withdraw(site.bucket, "host-a"),
    "of a version without a service": lambda site: say_room(site.bucket, site.room(service=None)),
    "silent for long": lambda site: say_room(site.bucket, site.room(at="2020-01-01T00:00:00Z")),
    "not listening": lambda site: say_room(
        site.bucket, site.room(service=site.address.model_copy(update={"address": None}))
    ),
    "on a closed port": lambda site: say_room(
        site.bucket, site.room(service=site.address.model_copy(update={"address": f"127.0.0.1:{free_ports(1)}"}))
    ),
}


@pytest.mark.parametrize("kind", AWAY)
async def test_a_host_elsewhere_that_does_not_say_where_it_is_cannot_be_reached(kind: str, elsewhere: HostSite) -> None:
    AWAY[kind](elsewhere)
    with pytest.raises(HostUnreachable, match="host-a") as told:
        await elsewhere.hosts.confirmed(elsewhere.found())
    assert told.value.details == {"host": "host-a"}
    say_room(elsewhere.bucket, elsewhere.room())
    assert await elsewhere.hosts.confirmed(elsewhere.found()) == elsewhere.reference()


async def test_a_bucket_that_is_away_hides_no_host_that_is_known(elsewhere: HostSite, site: HostSite) -> None:
    def away(*_: str) -> None:
        raise BucketUnavailable("away")

    for each in (site, elsewhere):
        each.bucket.before = away
    # Of its own home, a server asks nobody where it is.
    assert await site.hosts.confirmed(site.found()) == site.reference()
    with pytest.raises(BucketUnavailable):
        await elsewhere.hosts.confirmed(elsewhere.found())
    elsewhere.bucket.before = lambda *_: None
    await elsewhere.hosts.confirmed(elsewhere.found())
    elsewhere.bucket.before = away
    elsewhere.hosts._addresses.forget("host-a")
    assert await elsewhere.hosts.confirmed(elsewhere.found()) == elsewhere.reference()


async def test_who_sends_no_request_is_cut_off_and_a_websocket_is_not(
    site: HostSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.service.server._HEAD_SECONDS", 0.05)
    path = str(site.settings.sockets / "host.sock")
    alive = b"GET /v1/alive HTTP/1.1\r\nHost: host\r\n\r\n"
    for sent in (b"", b"GET /v1/al", alive + b"GET /v1/al"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(sent[: len(alive)])
        if sent[len(alive) :]:
            assert b"204" in await reader.readuntil(b"\r\n\r\n")
            writer.write(sent[len(alive) :])
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
    async with site.hosts.socket(site.found(), "processes", ("talk",)) as socket:
        reader, writer = await asyncio.open_unix_connection(path)
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        await socket.send("hello")
        assert await socket.recv() == b"hello"


async def test_over_tls_just_the_certificate_that_the_host_says_is_trusted(home: Path, tmp_path: Path) -> None:
    port = free_ports(1)
    settings = Settings(home=home, host_name="host-a", host_listen=f"127.0.0.1:{port}", host_key="k" * 40)
    elsewhere = {"home": tmp_path, "host_name": "api", "host_key": "k" * 40}
    async with host_site(settings, ROUTES, **elsewhere) as site:
        assert await site.hosts.confirmed(site.found()) == site.reference()
        async with site.hosts.socket(site.found(), "processes", ("talk",)) as socket:
            await socket.send("hello")
            assert await socket.recv() == b"hello"
        # Its own certificate stays the same, whatever starts anew.
        assert site.service
        before = site.service.address.certificate
        await site.stop()
        await site.start()
        assert site.service.address.certificate == before
    (home / "host.pem").unlink()
    async with host_site(settings, ROUTES, **elsewhere) as site:
        assert site.service
        address = site.service.address
        assert address.certificate != before
        say_room(site.bucket, site.room(service=address.model_copy(update={"certificate": before})))
        with pytest.raises(HostUnreachable):
            await site.hosts.confirmed(site.found())
    async with host_site(settings, ROUTES, **elsewhere | {"host_key": "l" * 40}) as site:
        with pytest.raises(Unauthorized, match="TASKYARD_HOST_KEY"):
            await site.hosts.confirmed(site.found())
