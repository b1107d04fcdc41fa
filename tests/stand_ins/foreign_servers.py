"""Servers that are not Taskyard, or that do not do what they should: each speaks to one connection in its own way."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

#: What a server does with one connection, given the beginning of its request.
Speaks = Callable[[socket.socket, bytes], None]

# The longest that one of them goes on.
_SECONDS = 20.0
_PIECES_A_SECOND = 50


def answer(status: str, content_type: str, body: bytes, *, length: int | None = None, more: str = "") -> Speaks:
    """An answer that is whole; with ``length`` it claims another length than it has."""
    claimed = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {claimed}\r\nConnection: close\r\n"
    return lambda peer, _: peer.sendall(f"{head}{more}\r\n".encode() + body)


def endless(content_type: str, piece: bytes) -> Speaks:
    """An answer that never ends, one small piece after another."""

    def speak(peer: socket.socket, _request: bytes) -> None:
        peer.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n".encode())
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until:
            peer.sendall(piece)
            time.sleep(1 / _PIECES_A_SECOND)

    return speak


def silent(peer: socket.socket, _request: bytes = b"") -> None:
    """No word, until the other side leaves."""
    peer.settimeout(_SECONDS)
    while peer.recv(65536):
        pass


def _json(data: object, status: str = "200 OK", content_type: str = "application/json") -> Speaks:
    return answer(status, content_type, json.dumps(data).encode())


_HTML = b"<html><body>Welcome to nginx!</body></html>"

#: Name: how it speaks. None of it is what Taskyard says. A case costs a twentieth of a second for each command.
FOREIGN: dict[str, Speaks] = {
    "html": answer("200 OK", "text/html", _HTML),
    "html with a line": answer("200 OK", "text/html", _HTML + b"\n"),
    "html 502": answer("502 Bad Gateway", "text/html", _HTML),
    "html 404": answer("404 Not Found", "text/html", _HTML),
    "html 500": answer("500 Internal Server Error", "text/html", _HTML),
    "no content": answer("204 No Content", "text/plain", b""),
    "empty": answer("200 OK", "application/json", b""),
    "redirect": answer("302 Found", "text/html", b"", more="Location: https://user:pw@login.invalid/x\r\n"),
    "redirect to nowhere": answer("302 Found", "text/html", b""),
    "another object": _json({"hello": [1]}),
    "another log": _json({"hello": 1}, content_type="application/x-ndjson"),
    "a list": _json([]),
    "a string": _json("tasks"),
    "null": _json(None),
    "fields of other types": _json({"tasks": 3, "task_id": [], "id": {}, "artifacts": "x", "status": 1, "valid": "?"}),
    "an error of another form": _json({"error": {"code": 7}, "message": ["no"]}, "400 Bad Request"),
    "an error with odd details": _json(
        {"error": "conflict", "message": "m", "details": {"self": 1, "message": 2, "": 3}}, "409 Conflict"
    ),
    "deep json": answer("200 OK", "application/json", b"[" * 100_000),
    "not unicode": answer("200 OK", "application/json", b'{"id": "\xff\xfe"}'),
    "not what it claims to be packed as": answer(
        "200 OK", "application/json", _HTML, more="Content-Encoding: gzip\r\n"
    ),
    "nothing": lambda _peer, _: None,
    "half a head": lambda peer, _: peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "half a body": answer("200 OK", "application/json", b'{"tasks": [', length=10_000),
    "not http": lambda peer, _: peer.sendall(b"\x15\x03\x01\x00\x02\x02\x28" * 9),
    "ssh": lambda peer, _: peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "silence": silent,
    "endless": endless("application/json", b" "),
    "endless log": endless("application/x-ndjson", b"x"),
}


@contextmanager
def serving(speaks: Speaks) -> Iterator[str]:
    """Serve on a port of 127.0.0.1 while the block runs; gives the URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def speak(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            peer.settimeout(_SECONDS)
            if request := peer.recv(65536):
                speaks(peer, request)
            peer.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                threading.Thread(target=speak, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
