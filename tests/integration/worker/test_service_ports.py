"""Bytes to ports of a guest through the host's service: a real SSH server in the guest's place, and real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from foundation.service.paths import SOCKET, machine_path
from foundation.service.tokens import Purpose, authorization, make_token
from foundation.settings import Settings
from machines.records import MachineRecord
from tests.stack_settings import isolated_settings
from tests.stand_ins.memory_bucket import MemoryBucket
from tests.stand_ins.ports.guest import MACHINE, SshGuest
from worker.service import ports
from worker.service.server import HostService

EOF = json.dumps({"eof": True})
SIZE = 8 * 2**20


class Site:
    """The service of a host, over a guest that is an SSH server of this process."""

    def __init__(self, settings: Settings, guest: SshGuest) -> None:
        self.settings = settings
        self.guest = guest
        record = MachineRecord(
            id=MACHINE, owner_workflow="x", owner_run="y", cpus=1, memory_bytes=1, disk_bytes=1, state="running",
            created_at=datetime.now(UTC), deadline=datetime.now(UTC),
        )  # fmt: skip
        host: Any = SimpleNamespace(
            records=list, record=lambda _: record, is_alive=lambda _: True, connect=lambda _: guest.shell
        )
        bucket: Any = MemoryBucket()
        self.service = HostService(settings, host, bucket, ports.ROUTES)

    def connect(self, port: object, purpose: Purpose = "ports") -> connect:
        token = make_token(self.settings.service_key(), host=self.settings.host_name, subject=MACHINE, purpose=purpose)
        return unix_connect(
            str(self.settings.sockets / SOCKET),
            uri=f"ws://host{machine_path(MACHINE, 'connect', str(port))}",
            additional_headers={"Authorization": authorization(token)},
            compression=None,
            max_size=2**20,
        )


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    settings = isolated_settings(tmp_path / "home")
    with SshGuest(tmp_path) as guest:
        made = Site(settings, guest)
        await made.service.start()
        yield made
        await made.service.stop()


@asynccontextmanager
async def listening(serve: Callable[[socket.socket], None]) -> AsyncIterator[int]:
    """A server in the guest, for one connection; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive(), "the guest's side of the connection did not end"


def read_all(connection: socket.socket) -> bytes:
    read = bytearray()
    while data := connection.recv(65536):
        read += data
    return bytes(read)


async def received(opened: ClientConnection) -> tuple[bytes, list[Any]]:
    """The bytes up to the connection's end, and the text frames among them."""
    data, told = bytearray(), []
    with pytest.raises(ConnectionClosed):  # noqa: PT012 -- it comes when all has come
        while True:
            message = await opened.recv()
            if isinstance(message, bytes):
                data += message
            else:
                told.append(json.loads(message))
    return bytes(data), told


async def test_each_way_ends_by_itself(site: Site) -> None:
    """A guest that answers when all has come: what it is sent ends before what it sends."""
    async with listening(lambda guest: guest.sendall(read_all(guest)[::-1])) as port, site.connect(port) as opened:
        await opened.send(b"abc")
        await opened.send(b"def")
        await opened.send(EOF)
        assert await received(opened) == (b"fedcba", [{"eof": True}])
        assert opened.close_code == 1000


async def test_a_guest_that_ends_first_still_receives(site: Site) -> None:
    taken = bytearray()

    def serve(guest: socket.socket) -> None:
        guest.sendall(b"first")
        guest.shutdown(socket.SHUT_WR)
        taken.extend(read_all(guest))

    async with listening(serve) as port, site.connect(port) as opened:
        assert await opened.recv() == b"first"
        assert json.loads(await opened.recv()) == {"eof": True}
        await opened.send(b"afterwards")
        await opened.send(EOF)
        assert await received(opened) == (b"", [])
    assert taken == b"afterwards"


async def test_megabytes_pass_both_ways_at_once(site: Site) -> None:
    blob = bytes(range(256)) * (SIZE // 256)

    def echo(guest: socket.socket) -> None:
        while data := guest.recv(65536):
            guest.sendall(data)

    async with listening(echo) as port, site.connect(port) as opened:

        async def send() -> None:
            for begin in range(0, SIZE, 2**18):
                await opened.send(blob[begin : begin + 2**18])
            await opened.send(EOF)

        sending = asyncio.create_task(send())
        assert await received(opened) == (blob, [{"eof": True}])
        await sending


async def test_who_reads_slowly_holds_the_guest_up(site: Site) -> None:
    sent = 0
    given_up = threading.Event()

    def flood(guest: socket.socket) -> None:
        nonlocal sent
        guest.settimeout(1)
        try:
            while not given_up.is_set():
                sent += guest.send(bytes(65536))
        except OSError:
            given_up.set()

    async with listening(flood) as port, site.connect(port) as opened:
        await asyncio.to_thread(given_up.wait, 20)
        opened.transport.abort()
    # Sockets' buffers, a window, and a few frames: not what the guest would have liked to send.
    assert sent < 64 * 2**20


async def test_a_client_that_leaves_takes_its_connection_along(site: Site) -> None:
    async with listening(assert_ends) as port, site.connect(port) as opened:
        await opened.send(b"x")
        opened.transport.abort()


def assert_ends(guest: socket.socket) -> None:
    guest.settimeout(15)
    with suppress(ConnectionError):
        assert read_all(guest) in {b"x", b""}


@pytest.mark.parametrize(
    ("port", "purpose", "status", "code"),
    [
        (1, "ports", 502, "port_refused"),
        (22, "ports", 400, "invalid_parameter"),
        (1021, "ports", 400, "invalid_parameter"),
        (0, "ports", 400, "invalid_parameter"),
        (65536, "ports", 400, "invalid_parameter"),
        ("ssh", "ports", 400, "invalid_parameter"),
        (1, "files", 401, "unauthorized"),
    ],
)
async def test_what_is_not_connected_to_is_said_so(
    site: Site, port: object, purpose: Purpose, status: int, code: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with site.connect(port, purpose):
            pass
    body = json.loads(refused.value.response.body or b"")
    assert (refused.value.response.status_code, body["error"]) == (status, code), body


async def test_a_guest_that_lets_nobody_connect_keeps_its_connection(site: Site) -> None:
    site.guest.forwards = False
    with pytest.raises(InvalidStatus) as refused:
        async with site.connect(1):
            pass
    assert json.loads(refused.value.response.body or b"")["error"] == "guest_unreachable"
    site.guest.forwards = True
    async with listening(lambda guest: guest.sendall(b"there")) as port, site.connect(port) as opened:
        await opened.send(EOF)
        assert (await received(opened))[0] == b"there"


async def test_a_connection_that_breaks_is_told(site: Site) -> None:
    async with listening(assert_ends) as port, site.connect(port) as opened:
        await asyncio.to_thread(site.guest.cut)
        _, told = await received(opened)
    assert told[-1]["error"]["error"] == "guest_unreachable"
    assert opened.close_code == 4504


async def test_one_machine_has_a_number_of_connections(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports._CONNECTIONS, "most", 1)
    async with listening(assert_ends) as port, site.connect(port):
        with pytest.raises(InvalidStatus) as refused:
            async with site.connect(port):
                pass
    assert refused.value.response.status_code == 429


async def test_what_is_no_frame_of_this_is_refused(site: Site) -> None:
    async with listening(assert_ends) as port, site.connect(port) as opened:
        await opened.send("hello")
        _, told = await received(opened)
    assert told[-1]["error"]["error"] == "invalid_body"
