"""What a hostile guest may cost the gateway: connections, heads, bodies, answers that nobody reads, forged targets."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.settings import Settings
from machines.hypervisor.handover import handover_command
from tests.waiting import until
from worker.gateway.bodies import MAX_BODY_BYTES
from worker.gateway.guest_connection import ConnectionLimits
from worker.gateway.model_gateway import Gateway, GatewayLimits

HOSTILE, QUIET = "vm-00000000000000bb", "vm-00000000000000aa"
QUICK = ConnectionLimits(head_seconds=0.05, stall_seconds=0.05, close_seconds=0.05, look_seconds=0.01)
BODY = b'{"model": "any", "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}'


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ty-") as directory:
        for machine in (HOSTILE, QUIET):
            record = Path(directory) / "machines" / machine / "machine.json"
            record.parent.mkdir(parents=True)
            record.write_text("{}")
        yield Path(directory)


@asynccontextmanager
async def serving(
    home: Path, limits: GatewayLimits | None = None, upstream: str | None = None
) -> AsyncIterator[Gateway]:
    key = {"anthropic_api_key": "sk-of-the-host", "anthropic_base_url": upstream} if upstream else {}
    gateway = Gateway(Settings(home=home, **({"anthropic_api_key": None} | key)), limits=limits)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


class Guest:
    """Connections as a guest has them: opened by the program that QEMU starts, or directly at the older socket."""

    def __init__(self, home: Path, machine: str) -> None:
        self._run = home / "run"
        self._machine = machine

    async def connect(self, *, by_program: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        mine, theirs = socket.socketpair()
        with theirs:
            if by_program:
                command = shlex.split(handover_command(self._machine, "guests.sock"))
                await asyncio.to_thread(subprocess.run, command, stdin=theirs, cwd=self._run, check=True)
            else:
                await asyncio.to_thread(hand_over, self._run, self._machine.encode(), [theirs.fileno()])
        return await asyncio.open_unix_connection(sock=mine)

    async def connect_directly(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self._run / "gateway.sock")


def hand_over(run: Path, name: bytes, descriptors: list[int]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.connect(os.fspath(run / "guests.sock"))
        socket.send_fds(door, [name], descriptors)


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str, target: str = "/v1/messages"
) -> int:
    writer.write(request(token, target))
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


def request(token: str, target: str = "/v1/messages", host: str = "gateway", *, length: int = len(BODY)) -> bytes:
    head = (
        f"POST {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n"
    )
    return head.encode("latin-1") + BODY


HALVES = {
    "nothing": b"",
    "half a request line": b"POST /v1/mess",
    "half a head": b"POST /v1/messages HTTP/1.1\r\nHost: g\r\nX-",
    "a byte of a second request": b"GET / HTTP/1.1\r\nHost: g\r\n\r\nG",
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES.keys())
@pytest.mark.parametrize("way", ["handed", "directly"])
async def test_half_open_connections_cost_nobody_an_answer(home, half, way):
    most = 5
    limits = GatewayLimits(connections=ConnectionLimits(for_each_machine=most, without_machine=most))
    async with serving(home, limits) as gateway:
        hostile, quiet = Guest(home, HOSTILE), Guest(home, QUIET)
        opened = []
        for _ in range(4 * most):
            reader, writer = await (hostile.connect() if way == "handed" else hostile.connect_directly())
            writer.write(half)
            opened.append((reader, writer))
        # The oldest ones have given way, and the flood is over for the gateway with that.
        for reader, writer in opened[: 3 * most]:
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
        for guest, machine in ((quiet, QUIET), (hostile, HOSTILE)):
            assert await ask(*await guest.connect(), gateway.token(machine)) == 200
        for _, writer in opened:
            writer.close()


async def test_token_is_worth_nothing_on_a_connection_of_another_machine(home):
    pooled = "vm-00000000000000cc"
    (home / "machines" / QUIET / "process").write_text(pooled)
    async with serving(home) as gateway:
        for shown, at, status in (
            (QUIET, QUIET, 200),
            (QUIET, HOSTILE, 401),
            (HOSTILE, QUIET, 401),
            (QUIET, pooled, 200),
            (HOSTILE, pooled, 401),
        ):
            assert await ask(*await Guest(home, at).connect(), gateway.token(shown)) == status, (shown, at)


async def test_connections_at_work_are_not_taken_for_new_ones(home):
    limits = GatewayLimits(connections=ConnectionLimits(for_each_machine=1))
    async with serving(home, limits) as gateway:
        guest = Guest(home, HOSTILE)
        reader, writer = await guest.connect()
        writer.write(request(gateway.token(HOSTILE), length=len(BODY) + 1))
        await until(lambda: gateway._requests[HOSTILE] == 1, "the request to be under way")
        refused, second = await guest.connect()
        assert await refused.read() == b""
        writer.write(b" ")
        assert b" 200 " in await reader.readline()
        for each in (writer, second):
            each.close()


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES.keys())
async def test_head_that_does_not_come_ends_the_connection(home, half):
    async with serving(home, GatewayLimits(connections=QUICK)):
        reader, writer = await Guest(home, HOSTILE).connect()
        writer.write(half)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()


async def test_what_is_no_request_is_refused_without_a_line_in_the_log(home, caplog):
    async with serving(home):
        for garbage in (
            b"\x16\x03\x01\r\n\r\n",
            b"GET / HTTP/9\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        ):
            reader, writer = await Guest(home, HOSTILE).connect()
            writer.write(garbage)
            assert b" 400 " in await reader.readline()
            writer.close()
    assert [record for record in caplog.records if "equest" in record.message] == []


async def test_body_that_does_not_come_is_refused(home):
    async with serving(home, GatewayLimits(body_seconds=0.05)) as gateway:
        reader, writer = await Guest(home, HOSTILE).connect()
        writer.write(request(gateway.token(HOSTILE), length=len(BODY) + 1))
        assert b" 408 " in await reader.readline()
        assert gateway._requests == gateway._body_bytes == {}
        writer.close()


async def test_requests_and_bodies_of_one_machine_are_limited_together(home):
    async with serving(home, GatewayLimits(requests=2, bodies_bytes=MAX_BODY_BYTES // 4)) as gateway:
        guest = Guest(home, HOSTILE)
        reader, writer = await guest.connect()
        writer.write(
            request(gateway.token(HOSTILE), length=MAX_BODY_BYTES // 2) + b" " * (MAX_BODY_BYTES // 2 - len(BODY))
        )
        assert b" 429 " in await reader.readline()
        writer.close()
        waiting = [await guest.connect() for _ in range(2)]
        for _, each in waiting:
            each.write(request(gateway.token(HOSTILE), length=len(BODY) + 1))
        await until(lambda: gateway._requests[HOSTILE] == 2, "both requests to be under way")
        assert await ask(*await guest.connect(), gateway.token(HOSTILE)) == 429
        assert await ask(*await Guest(home, QUIET).connect(), gateway.token(QUIET)) == 200
        for _, each in waiting:
            each.close()


async def test_answer_that_nobody_reads_ends_with_its_request_to_the_model(home):
    left = asyncio.Event()

    async def model(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b"data: " + b"x" * 65536 + b"\n\n")
                await writer.drain()
        left.set()

    server = await asyncio.start_server(model, "127.0.0.1", 0)
    upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, serving(home, GatewayLimits(connections=QUICK), upstream) as gateway:
        mine, theirs = socket.socketpair()
        with theirs:
            await asyncio.to_thread(hand_over, home / "run", HOSTILE.encode(), [theirs.fileno()])
        with mine:
            mine.sendall(request(gateway.token(HOSTILE)))
            await asyncio.wait_for(left.wait(), 60)


async def test_handed_garbage_is_closed_and_the_next_connection_served(home):
    async with serving(home) as gateway:
        assert await ask(*await Guest(home, QUIET).connect(), gateway.token(QUIET)) == 200
        before = open_descriptors()
        mine, theirs = socket.socketpair()
        with (
            mine,
            theirs,
            tempfile.TemporaryFile() as file,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
        ):
            for name, descriptors in (
                (HOSTILE.encode(), []),
                (HOSTILE.encode(), [file.fileno()]),
                (HOSTILE.encode(), [datagram.fileno()]),
                (HOSTILE.encode(), [theirs.fileno(), file.fileno()]),
                (HOSTILE.encode(), [theirs.fileno()] * 40),
                (b"", [theirs.fileno()]),
                (b"vm-../../machine", [theirs.fileno()]),
                (b"\xff" * 500, [theirs.fileno()]),
            ):
                await asyncio.to_thread(hand_over, home / "run", name, descriptors)
            assert await ask(*await Guest(home, QUIET).connect(by_program=True), gateway.token(QUIET)) == 200
        await until(lambda: open_descriptors() <= before, "every descriptor to be closed")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


SEPARATORS = ["/", "//", "..", ".", "%2e", "%2f", "%00", ";a=b", "?", "#", "*", "@", ":80", "\\", "&", "http://"]
WORDS = ["v1", "messages", "count_tokens", "files", "batches", "beta=true", "127.0.0.1", "V1", "Messages", "%6d"]
PIECES = st.sampled_from([*SEPARATORS, *WORDS])
TARGETS = st.lists(PIECES, min_size=1, max_size=7).map("".join)
OFFERED = {"/v1/messages", "/v1/messages/count_tokens"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=st.one_of(TARGETS, st.sampled_from(sorted(OFFERED))), host=st.one_of(st.just("x"), TARGETS))
def test_no_target_and_no_host_header_leads_upstream_to_another_path(home, target, host):
    asked: list[str] = []

    def model(sent: httpx.Request) -> httpx.Response:
        asked.append(str(sent.url))
        return httpx.Response(200, json={})

    async def scenario() -> bytes:
        gateway = Gateway(
            Settings(home=home, anthropic_api_key="sk-of-the-host", anthropic_base_url="http://model/api")
        )
        gateway._client = httpx.AsyncClient(base_url="http://model/api", transport=httpx.MockTransport(model))
        sent: list[dict] = []

        async def receive() -> dict:
            return {"type": "http.request", "body": BODY, "more_body": False}

        async def send(message: dict) -> None:
            sent.append(message)

        raw, _, query = target.encode().partition(b"?")
        token = gateway.token(HOSTILE).encode()
        headers = [(b"host", host.encode()), (b"authorization", b"Bearer " + token)]
        scope = {
            "type": "http",
            "method": "POST",
            "raw_path": raw,
            "path": httpx.URL(path="/").path,
            "headers": headers,
        }
        scope |= {"query_string": query, "scheme": "http", "server": None, "http_version": "1.1"}
        scope |= {"asgi": {"spec_version": "2.4"}}
        await gateway._serve(scope, receive, send)
        return sent[0]["status"]

    status = asyncio.run(scenario())
    path = target.partition("?")[0]
    if path in OFFERED:
        assert status == 200
        assert asked[0].partition("?")[0] == f"http://model/api{path}"
        assert asked[0].partition("?")[2] in {"", "beta=true"}
    else:
        assert (status, asked) == (404, [])
