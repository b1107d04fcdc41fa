"""Programs that listen in a real machine, reached by path, by host name, as plain bytes and as local ports."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.e2e.conftest import Entered, until

pytestmark = pytest.mark.timeout(300)

SANDBOX = str(Path(__file__).parents[3] / ".venv/bin/sandbox")
SIZE = 20_000_000
HTTP, BACKWARDS, NONSENSE, NOBODY = 8080, 8081, 8082, 8083

# Runs in the guest: HTTP, a WebSocket that gives messages back, bytes backwards, and what is no HTTP.
PROGRAM = r"""
import base64, hashlib, http.server, json, random, socketserver, sys, threading, time
BLOB = random.Random(1).randbytes(20_000_000)
left = []

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body, **fields):
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **fields}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/blob":
            self.answer(BLOB)
        elif self.path == "/left":
            self.answer(json.dumps(left).encode())
        elif self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            try:
                for number in range(10_000):
                    self.wfile.write(f"data: {number}\n\n".encode())
                    time.sleep(0.2)
            except OSError:
                left.append("events")
        elif self.headers.get("Upgrade") == "websocket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            self.close_connection = True
            while True:
                head = self.rfile.read(2)
                mask = self.rfile.read(4)
                body = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(head[1] & 127)))
                self.wfile.write(bytes([head[0], len(body)]) + body)
                if head[0] & 15 == 8:
                    return
        else:
            self.answer(json.dumps({"path": self.path, "fields": dict(self.headers)}).encode(), X_Own="yes")

    def do_PUT(self):
        digest, left_bytes = hashlib.sha256(), int(self.headers["Content-Length"])
        while left_bytes:
            data = self.rfile.read(min(65536, left_bytes))
            left_bytes -= len(data)
            digest.update(data)
        self.answer(digest.hexdigest().encode())

    def log_message(self, *_):
        pass

class Backwards(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read()[::-1])

class Nonsense(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"220 what do you want\r\n")

for port, handler in ((8081, Backwards), (8082, Nonsense)):
    server = socketserver.ThreadingTCPServer(("10.0.2.15", port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler)
print(hashlib.sha256(BLOB).hexdigest(), flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def blob(entered: Entered) -> Iterator[str]:
    """The digest of what the running programs give out."""
    server = f"http://127.0.0.1:{entered.site.settings.api_port}"
    words = [SANDBOX, "task", "exec", "--server", server, entered.id, "--", "python3", "-c", PROGRAM]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        yield running.stdout.readline().strip()
        running.kill()


def ways(entered: Entered, port: int) -> list[tuple[str, dict[str, str]]]:
    """By path, and by host name."""
    api = f"127.0.0.1:{entered.site.settings.api_port}"
    name = f"{port}-{entered.id}.sandbox.localhost:{entered.site.settings.api_port}"
    return [(f"{entered.url}/ports/{port}", {}), (f"http://{api}", {"Host": name})]


def test_requests_reach_a_program_and_so_do_bodies_of_any_size(entered: Entered, blob: str) -> None:
    sent = os.urandom(SIZE)
    with httpx.Client(timeout=120) as http:
        for number, (url, headers) in enumerate(ways(entered, HTTP)):
            seen = http.get(f"{url}/a%2Fb?c=d", headers=headers)
            assert seen.status_code == 200, seen.text
            assert seen.json()["path"] == "/a%2Fb?c=d"
            fields = {name.lower(): value for name, value in seen.json()["fields"].items()}
            assert fields["host"] == headers.get("Host", f"localhost:{HTTP}")
            if number == 0:
                assert hashlib.sha256(http.get(f"{url}/blob", headers=headers).content).hexdigest() == blob
            else:
                told = http.put(f"{url}/", headers=headers, content=sent)
                assert told.text == hashlib.sha256(sent).hexdigest()
    assert any(f"Port {HTTP} " in event["message"] for event in entered.events("access") if event["kind"] == "port")


def test_events_come_as_they_happen_and_a_client_that_leaves_is_missed(entered: Entered, blob: str) -> None:
    assert blob
    url, _ = ways(entered, HTTP)[0]
    with httpx.Client(timeout=60) as http:
        for url, headers in ways(entered, HTTP):
            with http.stream("GET", f"{url}/events", headers=headers) as events:
                lines = (line for line in events.iter_lines() if line)
                assert [next(lines) for _ in range(3)] == ["data: 0", "data: 1", "data: 2"]
        until(lambda: http.get(f"{url}/left", headers=headers).json() == ["events", "events"])


async def test_web_sockets_and_half_closed_connections(entered: Entered, blob: str) -> None:
    assert blob
    async with connect(f"{entered.ws_url}/ports/{HTTP}/socket") as opened:
        for message in ("text", b"bytes"):
            await opened.send(message)
            assert await opened.recv() == message
        await opened.close(4567)
        assert opened.close_code == 4567
    # Of the guest's network alone, and not of its loopback.
    async with connect(f"{entered.ws_url}/connect/{BACKWARDS}") as opened:
        await opened.send(b"abc")
        await opened.send('{"eof": true}')
        assert await opened.recv() == b"cba"
        assert json.loads(await opened.recv()) == {"eof": True}
        with pytest.raises(ConnectionClosed):
            await opened.recv()


def test_ports_that_nobody_listens_on_and_answers_that_are_none(entered: Entered, blob: str) -> None:
    assert blob
    with httpx.Client(timeout=60) as http:
        for port, status, code in (
            (NOBODY, 502, "port_refused"),
            (NONSENSE, 502, "guest_answer_invalid"),
            (22, 400, "invalid_parameter"),
        ):
            for url, headers in ways(entered, port):
                answer = http.get(f"{url}/", headers=headers)
                assert (answer.status_code, answer.json()["error"]) == (status, code), answer.text


async def test_local_ports_lead_into_the_machine(entered: Entered, blob: str) -> None:
    server = f"http://127.0.0.1:{entered.site.settings.api_port}"
    words = [SANDBOX, "task", "port", "--server", server, entered.id, f":{HTTP}", f":{NOBODY}"]
    running = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout
    local = []
    for port in (HTTP, NOBODY):
        found = re.fullmatch(
            rf"Forwarding from 127\.0\.0\.1:(\d+) -> {port}\n", (await running.stdout.readline()).decode()
        )
        assert found
        local.append(found[1])
    async with httpx.AsyncClient(timeout=120) as http:
        with pytest.raises(httpx.TransportError):
            await http.get(f"http://127.0.0.1:{local[1]}/")
        answer = await http.get(f"http://127.0.0.1:{local[0]}/blob")
    assert hashlib.sha256(answer.content).hexdigest() == blob
    running.send_signal(signal.SIGINT)
    _, told = await running.communicate()
    assert running.returncode == 0
    assert f"Port {NOBODY}: Nothing listens" in told.decode()
