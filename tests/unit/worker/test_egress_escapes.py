"""Attempts to get out through the egress proxy, from the table, with a real proxy and an origin of several names."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.egress_site import MACHINE, connect, serving
from tests.escapes.attempts import GREETING, LOCATION, Attempt, outcome, read_table
from worker.egress.passage import EgressLimits
from workflows.specs.wire import NetworkPolicy

PLACES = {"origin": "127.0.4.1", "named": "127.0.4.2", "private": "10.1.2.3"}
QUICK = EgressLimits(head_seconds=0.05)
PATIENCE = 30


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


async def attempted(home, attempt: Attempt) -> tuple[str, ...]:
    """What a guest reads that makes the attempt."""
    reader, writer = await connect(home, MACHINE)
    read = b""
    writer.write(attempt.sent)
    with suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while (data := await reader.read(65536)) and len(outcome(read := read + data)) < len(attempt.answer):
                pass
            while outcome(read) == ("closed",) and (data := await reader.read(65536)):
                read += data
    writer.close()
    return outcome(read)


@pytest.mark.parametrize("name", [each.name for each in read_table(**PLACES, port="1").attempts])
async def test_attempt_comes_to_what_the_table_says_and_is_told_in_the_log(home, name):
    async with origin() as (reached, port):
        table = read_table(**PLACES, port=str(port))
        attempt = next(each for each in table.attempts if each.name == name)
        limits = QUICK if attempt.slow else None
        async with serving(home, limits, names=table.names, egress_denied_hosts=table.denied) as egress:
            egress.set_policy(MACHINE, NetworkPolicy.model_validate(attempt.policy))
            assert await attempted(home, attempt) == attempt.answer
            told = [each.reason for each in egress.drain(MACHINE, last=True)]
            blocked = egress.use(MACHINE).blocked
    assert any(all(word in reason for word in attempt.log) for reason in told), told
    gets_through = bool({"reached", "redirected"} & set(attempt.answer))
    assert gets_through or attempt.partly or reached.got == b""
    assert blocked == (0 if attempt.answer in {("reached",), ("redirected",)} else 1) or attempt.slow
    for word in attempt.without:
        assert word.encode() not in reached.got.lower()
