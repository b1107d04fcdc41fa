"""Injected credentials at the egress proxy: a guest with a placeholder, a real origin over TLS, and nothing between.

The origin speaks HTTP/2 and HTTP/1.1. What it got, and what the guest has read, is held against the secret's value.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from activities.machine.authority import ensure_authority
from activities.machine.secrets import RunSecrets
from foundation.settings import Settings
from machines.host import MachineHost
from tests.egress_site import MACHINE, ORIGIN, connect, connecting, outbound, serving
from tests.stand_ins.tls_origin import Origin, tls_origin
from tests.waiting import until
from worker.egress.egress import Egress
from worker.egress.injection import injections
from workflows.specs.wire import Injection, SecretReference

HOST = "allowed.example.org"
VALUE = "tok-" + "0123456789abcdef" * 4
HEADER = f"Bearer {VALUE}"


@dataclass
class Guest:
    """What a guest has: its proxy, its placeholder, and the authority that it trusts."""

    home: Path
    origin: Origin
    egress: Egress
    placeholder: str
    trust: ssl.SSLContext

    async def connect(
        self, name: str | None = HOST, host: str = HOST
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await connect(self.home)
        writer.write(connecting(host, self.origin.port))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        self.trust.check_hostname = name is not None
        await writer.start_tls(self.trust, server_hostname=name)
        return reader, writer

    async def ask(self, target: str = "/", *headers: str, method: str = "GET", body: bytes = b"") -> tuple[str, bytes]:
        """The first line and all else of the answer to one request on a connection of its own."""
        reader, writer = await self.connect()
        length = [f"Content-Length: {len(body)}"] if body else []
        lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}:{self.origin.port}", *headers, *length]
        writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
        return await self.answer(reader, writer)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, bytes]:
        with_all = await reader.read()
        writer.close()
        first, _, rest = with_all.partition(b"\r\n")
        return first.decode(), rest


@asynccontextmanager
async def guest(*protocols: str, **inject) -> AsyncIterator[Guest]:
    monkeypatch = pytest.MonkeyPatch()
    with tempfile.TemporaryDirectory(prefix="ty-") as directory:
        home = Path(directory)
        (home / "machines" / MACHINE).mkdir(parents=True)
        async with _guest(home, monkeypatch, protocols or ("h2", "http/1.1"), inject) as it:
            yield it


@asynccontextmanager
async def _guest(
    home: Path, monkeypatch: pytest.MonkeyPatch, protocols: tuple[str, ...], inject: dict[str, str]
) -> AsyncIterator[Guest]:
    async with tls_origin(home / "origin", ORIGIN, HOST, protocols) as origin:
        monkeypatch.setenv("SSL_CERT_FILE", str(origin.authority))
        monkeypatch.setenv("TASK_TOKEN", VALUE)
        settings = Settings(home=home)
        injection = Injection(hosts=[f"{HOST}:{origin.port}"], **inject)
        references = [SecretReference(name="TOKEN", source="env", key="TASK_TOKEN", inject=injection)]
        RunSecrets(settings).resolve(MACHINE, references)
        authority = ensure_authority(settings.machines / MACHINE, [HOST])
        trust = ssl.create_default_context(cadata=authority.pem)
        try:
            async with serving(home) as egress:
                egress.set_policy(MACHINE, outbound("*.example.org"))
                yield Guest(home, origin, egress, RunSecrets(settings).given(MACHINE)["TOKEN"], trust)
        finally:
            monkeypatch.undo()
            MachineHost(settings).destroy(MACHINE)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(("version", "protocols"), [("2", ("h2", "http/1.1")), ("1.1", ("http/1.1",))])
async def test_a_request_gets_the_value_and_its_answer_has_none(version, protocols):
    async with guest(*protocols) as it:
        placeholder = f"Bearer {it.placeholder}"
        for headers in [(), (f"Authorization: {placeholder}",), (f"authorization: {placeholder}",)]:
            line, rest = await it.ask("/echo", *headers, "Accept-Encoding: gzip")
            assert line == "HTTP/1.1 200 OK"
            asked = it.origin.asked[-1]
            assert (asked["version"], asked["headers"]["authorization"]) == (version, HEADER)
            head, _, body = rest.partition(b"\r\n\r\n")
            # What the host repeats of it, in its head and in its body, is the placeholder again.
            assert VALUE.encode() not in rest
            assert f"x-saw: {placeholder}".encode() in head
            assert b"content-length: %d" % len(body) in head
            assert json.loads(body)["headers"]["authorization"] == placeholder
        assert it.egress.use(MACHINE).blocked == 0


async def test_user_and_password_are_filled_in_as_git_sends_them():
    async with guest(format="Basic x-access-token:{}") as it:
        for headers in [(), (f"Authorization: {basic(f'x-access-token:{it.placeholder}')}",)]:
            line, rest = await it.ask("/echo", *headers)
            assert (line, it.origin.headers()["authorization"]) == ("HTTP/1.1 200 OK", basic(f"x-access-token:{VALUE}"))
            assert VALUE.encode() not in rest
            shown = json.loads(rest.partition(b"\r\n\r\n")[2])["headers"]["authorization"]
            # Base64 has a byte or two of the value's ends in common with what stands around it.
            assert VALUE[2:-2] not in base64.b64decode(shown[6:]).decode("latin-1")


ELSEWHERE = {
    "address": lambda p: ("/" + p, (), b""),
    "query": lambda p: (f"/?a={p}", (), b""),
    "escaped": lambda p: ("/" + "".join(f"%{ord(letter):02x}" for letter in p), (), b""),
    "other header": lambda p: ("/", (f"X-Token: {p}",), b""),
    "base64": lambda p: ("/", (f"X-Token: {base64.b64encode(b'ab' + p.encode()).decode()}",), b""),
    "name of a header": lambda p: ("/", (f"{p}: x",), b""),
    "body": lambda p: ("/", (), b"x" * 100_000 + p.encode()),
    "end of the body": lambda p: ("/", (), b"{" + p.encode()),
    "base64 in the body": lambda p: ("/", (), base64.b64encode(b"a" + p.encode() + b"xyz")),
    "another value": lambda _: ("/", ("Authorization: Bearer another",), b""),
    "another user": lambda _: ("/", (f"Authorization: {basic('me:mine')}",), b""),
}


@pytest.mark.parametrize("where", ELSEWHERE)
async def test_the_placeholder_stands_in_its_header_and_nothing_else_does(where):
    async with guest() as it:
        target, headers, body = ELSEWHERE[where](it.placeholder)
        line, rest = await it.ask(target, *headers, method="POST" if body else "GET", body=body)
        assert line.startswith(f"HTTP/1.1 403 blocked by the task's network policy: {HOST} (")
        assert b"secret TOKEN" in rest
        assert b"Taskyard-Verdict: blocked" in rest
        # What came before it may have gone on.
        for asked in it.origin.asked:
            assert not asked["complete"]
            assert body
            assert it.placeholder.encode() not in asked["body"]
        assert it.egress.use(MACHINE).blocked == 1
        assert [each.verdict for each in it.egress.drain(MACHINE)] == ["allowed", "blocked"]


@pytest.mark.parametrize("name", ["other.example.org", None])
async def test_tls_has_to_name_the_host(name):
    async with guest() as it:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await it.connect(name)
        await until(lambda: it.egress.use(MACHINE).blocked == 1, "the refusal of another name")
        assert any("TLS names" in each.reason for each in it.egress.drain(MACHINE))
        assert it.origin.asked == []


HOSTILE = {
    "another host": "GET / HTTP/1.1\r\nHost: other.example.org\r\n\r\n",
    "no host": "GET / HTTP/1.1\r\n\r\n",
    "two hosts": f"GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: other.example.org\r\n\r\n",
    "another port": f"GET / HTTP/1.1\r\nHost: {HOST}:1\r\n\r\n",
    "a whole URL": "GET https://other.example.org/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "a tunnel": "CONNECT other.example.org:443 HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "two lengths": (
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "two numbers": "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "no chunk": "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "many fields": "GET / HTTP/1.1\r\nHost: {host}\r\n" + "a: b\r\n" * 300 + "\r\n",
    "no HTTP": "\x00\x01\x02\x03\r\n\r\n",
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_what_is_no_request_to_the_host_is_refused_and_told(what):
    async with guest() as it:
        reader, writer = await it.connect()
        writer.write(HOSTILE[what].replace("{host}", f"{HOST}:{it.origin.port}").encode())
        line, _ = await it.answer(reader, writer)
        assert line.split(" ")[1] in {"400", "403"}, line
        assert [each for each in it.origin.asked if each["complete"]] == []
        assert it.egress.use(MACHINE).blocked == 1


async def test_requests_follow_one_another_and_stream_both_ways():
    async with guest() as it:
        reader, writer = await it.connect()
        host = f"Host: {HOST}:{it.origin.port}"
        writer.write(f"GET / HTTP/1.1\r\n{host}\r\n\r\nGET /large HTTP/1.1\r\n{host}\r\n\r\n".encode())
        assert b"content-length: 6\r\n" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(6) == b"served"
        assert b"content-length: 1048576\r\n" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(2**20) == bytes(2**20)
        # A guest that waits to be told to send its body is told so, and a chunked body stays one.
        head = f"POST /stream HTTP/1.1\r\n{host}\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        writer.write(b"5\r\nhello\r\n0\r\n\r\n")
        assert b"chunked" in await reader.readuntil(b"\r\n\r\n")
        assert b"data: hello\n\n" in await reader.readuntil(b"\n\n")
        assert f"data: Bearer {it.placeholder}\n\n".encode() in await reader.readuntil(b"\n\n")
        writer.close()


async def test_an_answer_that_never_ends_comes_as_it_comes_and_is_cut_with_the_rule():
    async with guest() as it:
        reader, writer = await it.connect()
        writer.write(f"GET /stream HTTP/1.1\r\nHost: {HOST}:{it.origin.port}\r\nX-Hold: yes\r\n\r\n".encode())
        await reader.readuntil(b"data: ")
        it.egress.set_policy(MACHINE, outbound("elsewhere.example.org"))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readuntil(b"never comes")
        writer.close()
        it.egress.set_policy(MACHINE, outbound("*.example.org"))
        assert (await it.ask())[0] == "HTTP/1.1 200 OK"


async def test_a_web_socket_is_let_through():
    async with guest() as it:
        reader, writer = await it.connect()
        key = base64.b64encode(bytes(16)).decode()
        upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}"
        upgrade += "\r\nSec-WebSocket-Extensions: permessage-deflate"
        writer.write(f"GET /ws HTTP/1.1\r\nHost: {HOST}:{it.origin.port}\r\n{upgrade}\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        # A masked frame with five letters.
        writer.write(b"\x81\x85\x00\x00\x00\x00hello")
        assert await reader.readexactly(7) == b"\x81\x05hello"
        # One with the value, of which the guest reads nothing.
        writer.write(b"\x81" + bytes([0x80 | len(VALUE)]) + bytes(4) + VALUE.encode())
        assert await reader.readexactly(2 + len(VALUE)) == b"\x81" + bytes([len(VALUE)]) + it.placeholder.encode()
        assert it.origin.headers()["authorization"] == HEADER
        assert "sec-websocket-extensions" not in it.origin.headers()
        writer.close()


@pytest.mark.parametrize("protocols", [("h2", "http/1.1"), ("http/1.1",)])
async def test_no_other_protocol_is_agreed_on_past_the_proxy(protocols):
    async with guest(*protocols) as it:
        settings = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
        line, rest = await it.ask("/echo", *settings)
        assert line == "HTTP/1.1 200 OK"
        assert "upgrade" not in it.origin.headers()
        assert VALUE.encode() not in rest


async def test_a_guest_that_begins_tls_before_it_was_answered_is_understood():
    async with guest() as it:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = it.trust.wrap_bio(incoming, outgoing, server_hostname=HOST)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        reader, writer = await connect(it.home)
        writer.write(connecting(HOST, it.origin.port) + outgoing.read())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        while True:
            incoming.write(await reader.read(65536))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
        tls.write(f"GET / HTTP/1.1\r\nHost: {HOST}:{it.origin.port}\r\nConnection: close\r\n\r\n".encode())
        writer.write(outgoing.read())
        answer = b""
        while b"served" not in answer:
            incoming.write(await reader.read(65536))
            try:
                answer += tls.read()
            except ssl.SSLWantReadError:
                continue
        assert VALUE.encode() not in answer
        writer.close()


async def test_a_host_with_a_certificate_that_this_host_does_not_trust_gets_nothing(tmp_path):
    async with guest() as it:
        (tmp_path / "other").mkdir()
        other = tmp_path / "other.crt"
        other.write_text(ensure_authority(tmp_path / "other", ["example.org"]).pem)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("SSL_CERT_FILE", str(other))
            # Of a proxy that starts now, and takes the connections in place of the one before.
            async with serving(it.home):
                line, _ = await it.ask()
        assert line.startswith(f"HTTP/1.1 502 {HOST} could not be asked: ")
        assert "certificate verify failed" in line
        assert it.origin.asked == []


IN_THE_CLEAR = {
    "a header": "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {placeholder}\r\n\r\n",
    "its user": "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nAuthorization: {basic}\r\n\r\n",
    "the address": "GET http://{host}/?a={placeholder} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "the body": "POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 200\r\n\r\n{placeholder:>200}",
    "a tunnel": "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\nGET /{placeholder} HTTP/1.1\r\nHost: {host}\r\n\r\n",
}


@pytest.mark.parametrize("what", IN_THE_CLEAR)
async def test_a_placeholder_in_the_clear_goes_nowhere(what):
    heard = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.close()

    async with guest() as it, await asyncio.start_server(hear, ORIGIN, 0) as server:
        words = {"placeholder": it.placeholder, "basic": basic(f"me:{it.placeholder}")}
        host = f"{HOST}:{server.sockets[0].getsockname()[1]}"
        reader, writer = await connect(it.home)
        writer.write(IN_THE_CLEAR[what].format(host=host, **words).encode())
        answer = await reader.read()
        writer.close()
        assert b"the placeholder of secret TOKEN stands in" in answer
        assert it.egress.use(MACHINE).blocked == 1
        assert it.placeholder.encode() not in b"".join(heard)


async def test_a_guest_has_so_many_connections_whose_tls_ends_here_and_others_beside_them(monkeypatch):
    monkeypatch.setattr(injections, "_CONNECTIONS_MOST", 2)
    async with guest() as it:
        held = [await it.connect() for _ in range(2)]
        reader, writer = await connect(it.home)
        writer.write(connecting(HOST, it.origin.port))
        assert b" 503 " in await reader.readline()
        writer.close()
        for _, each in held:
            each.close()
        await until(lambda: it.egress._machine(MACHINE).injections._open == 0, "their end")
        assert (await it.ask())[0] == "HTTP/1.1 200 OK"
