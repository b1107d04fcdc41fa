"""`sandbox task port`: local ports that lead into a machine, with programs and errors at the other end."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx

from tests.stand_ins.ports.programs import BLOB, Program, answering
from tests.stand_ins.ports.site import TASK, PortSite

_SCRIPT = """
import sys
from cli.task.connection import Server
from cli.task.forwarding import Forward, forward
forward(Server(sys.argv[1], None), sys.argv[2], [Forward(0, int(port)) for port in sys.argv[3:]], ["127.0.0.1"])
"""


@asynccontextmanager
async def forwarding(site: PortSite, *ports: int) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[int]]]:
    """The running command, and the local port of each of those."""
    command = [sys.executable, "-c", _SCRIPT, f"http://127.0.0.1:{site.port}", TASK, *map(str, ports)]
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    try:
        assert running.stdout
        local = []
        for port in ports:
            line = (await asyncio.wait_for(running.stdout.readline(), 30)).decode()
            found = re.fullmatch(r"Forwarding from 127\.0\.0\.1:(\d+) -> (\d+)\n", line)
            assert found, line
            assert int(found[2]) == port
            local.append(int(found[1]))
        yield running, local
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def test_connections_are_passed_on_and_those_that_fail_are_told(ports: PortSite, program: Program) -> None:
    async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])
        await writer.drain()

    async with answering(reverse) as backwards, forwarding(ports, program.port, backwards, 1) as (running, local):
        async with httpx.AsyncClient() as http:
            for _ in range(2):
                answer = await http.post(f"http://127.0.0.1:{local[0]}/echo", content=BLOB)
                assert answer.content == BLOB
        reader, writer = await asyncio.open_connection("127.0.0.1", local[2])
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", local[1])
        writer.write(b"after an error")
        writer.write_eof()
        assert await reader.read() == b"rorre na retfa"
        writer.close()
        running.send_signal(signal.SIGINT)
        _, told = await asyncio.wait_for(running.communicate(), 20)
        assert running.returncode == 0, told
    lines = told.decode().splitlines()
    assert f"Handling connection for {local[0]}" in lines
    assert [line for line in lines if line.startswith("Port 1: Nothing listens on port 1 in the machine")]
    assert "Traceback" not in told.decode()
