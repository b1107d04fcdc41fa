"""The origin that the attempts of the tables try to reach, at two addresses of loopback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.escapes.attempts import GREETING, LOCATION

PLACES = {"origin": "127.0.4.1", "named": "127.0.4.2", "private": "10.1.2.3"}


class Origin:
    """Answers HTTP as HTTP, and anything else with its greeting; remembers all that it gets."""

    def __init__(self) -> None:
        self.got = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending = b""
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                self.got += data
                pending += data
                if re.match(rb"[A-Z]+ /", pending):
                    *heads, pending = pending.split(b"\r\n\r\n")
                    for head in heads:
                        writer.write(answer(head))
                else:
                    writer.write(GREETING)
                    pending = b""
                await writer.drain()
        writer.close()


def answer(head: bytes) -> bytes:
    if b"/redirect" in head:
        return b"HTTP/1.1 302 Found\r\nLocation: " + LOCATION + b"\r\nContent-Length: 0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\nContent-Length: " + str(len(GREETING)).encode() + b"\r\n\r\n" + GREETING


@asynccontextmanager
async def origin() -> AsyncIterator[tuple[Origin, int]]:
    made = Origin()
    first = await asyncio.start_server(made.serve, PLACES["origin"], 0)
    port = first.sockets[0].getsockname()[1]
    second = await asyncio.start_server(made.serve, PLACES["named"], port)
    async with first, second:
        yield made, port
