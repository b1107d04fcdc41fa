"""WebSockets of programs in a machine, and plain bytes, through the API."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.stand_ins.ports.programs import Program, answering, saying
from tests.stand_ins.ports.site import TASK, PortSite
from tests.waiting import until


def urls(ports: PortSite, port: int, target: str) -> list[tuple[str, dict[str, str]]]:
    return [
        (f"ws://127.0.0.1:{ports.port}{ports.path(port, target)}", {}),
        (f"ws://127.0.0.1:{ports.port}{target}", {"Host": ports.name(port)}),
    ]


def opening(url: str, headers: dict[str, str], **options: Any) -> connect:
    """The library writes a Host field of its own; a name is in the URL then, and its address said apart."""
    if "Host" in headers:
        address = url.removeprefix("ws://").partition("/")[0]
        host, _, port = address.partition(":")
        return connect(url.replace(address, headers["Host"]), host=host, port=int(port), proxy=None, **options)
    return connect(url, proxy=None, **options)


async def test_web_sockets_pass(ports: PortSite, program: Program) -> None:
    big = "ü" * 500_000
    for url, headers in urls(ports, program.port, "/socket"):
        async with opening(url, headers, subprotocols=["other", "echo.v1"], max_size=None) as opened:
            assert opened.subprotocol == "echo.v1"
            for message in ("text", b"bytes", big, b""):
                await opened.send(message)
                assert await opened.recv() == message
            await asyncio.wait_for(await opened.ping(), 10)
            await opened.send("close")
            with pytest.raises(ConnectionClosed):
                await opened.recv()
            assert (opened.close_code, opened.close_reason) == (4321, "as asked")
        async with opening(url, headers) as opened:
            assert opened.subprotocol is None
            await opened.close(4567)
    await until(lambda: program.app.state.codes == [4567, 4567], "the codes of both")


async def test_a_refused_web_socket_is_refused_as_the_program_does(ports: PortSite, program: Program) -> None:
    for url, headers in urls(ports, program.port, "/socket?refuse"):
        with pytest.raises(InvalidStatus) as refused:
            async with opening(url, headers):
                pass
        answer = refused.value.response
        assert (answer.status_code, answer.body, answer.headers["x-program"]) == (418, b"not now", "socket")


async def test_web_sockets_that_come_to_nothing(ports: PortSite) -> None:
    bad = b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
    async with answering(saying(bad)) as lying, answering(saying(b"HTTP/1.1 999 What\r\n\r\n")) as speechless:
        for port, code in ((lying, "guest_answer_invalid"), (speechless, "guest_answer_invalid"), (1, "port_refused")):
            for url, headers in urls(ports, port, "/x"):
                with pytest.raises(InvalidStatus) as refused:
                    async with opening(url, headers):
                        pass
                answer = refused.value.response
                assert (answer.status_code, json.loads(answer.body or b"")["error"]) == (502, code)


async def test_pages_of_elsewhere_open_no_web_socket(ports: PortSite, program: Program) -> None:
    for url, headers in urls(ports, program.port, "/socket"):
        with pytest.raises(InvalidStatus) as refused:
            async with opening(url, headers, origin="https://evil.example.org"):
                pass
        assert refused.value.response.status_code == 403


async def test_bytes_pass_with_each_way_ending_by_itself(ports: PortSite) -> None:
    async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])
        await writer.drain()

    async with (
        answering(reverse) as port,
        connect(f"ws://127.0.0.1:{ports.port}/api/v1/tasks/{TASK}/connect/{port}") as opened,
    ):
        await opened.send(b"abc")
        await opened.send('{"eof": true}')
        assert await opened.recv() == b"cba"
        assert json.loads(await opened.recv()) == {"eof": True}
        with pytest.raises(ConnectionClosed):
            await opened.recv()
        assert opened.close_code == 1000


async def test_a_frame_that_is_too_large_is_told(ports: PortSite) -> None:
    async def swallow(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        answering(swallow) as port,
        connect(f"ws://127.0.0.1:{ports.port}/api/v1/tasks/{TASK}/connect/{port}") as opened,
    ):
        await opened.send(bytes(2**20 + 1))
        assert json.loads(await opened.recv())["error"]["error"] == "payload_too_large"
