"""Attached processes over a host's service: real sockets, real processes of a guest that is this host."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from foundation.service.attachment import PIECE, STDIN, STDOUT, WINDOW, Taken, Window, frame
from foundation.settings import Settings
from machines.processes.attached import MOST
from machines.processes.guard import guard_of
from tests.stand_ins.host_site import MACHINE, HostSite, host_site
from tests.stand_ins.local_sshd import LocalGuestServer
from tests.waiting import until


@pytest.fixture
def home() -> Iterator[Path]:
    # A socket's name is short.
    with tempfile.TemporaryDirectory(prefix="ty-") as directory:
        yield Path(directory)


@pytest.fixture
def guest(tmp_path: Path) -> Any:
    server = LocalGuestServer(tmp_path / "guest")
    yield server
    server.close()


@pytest.fixture
async def site(home: Path, guest: LocalGuestServer) -> AsyncIterator[HostSite]:
    async with host_site(Settings(home=home, host_name="host-a")) as running:
        running.machines.shells[MACHINE] = guest.shell
        yield running


@asynccontextmanager
async def attached(site: HostSite, **spec: Any) -> AsyncIterator[ClientConnection]:
    async with site.hosts.socket(site.found(), "processes", ("attach",)) as socket:
        await socket.send(json.dumps({"user": "root", "directory": "/"} | spec))
        yield socket


async def rest(socket: ClientConnection) -> tuple[dict[int, bytes], dict[str, Any]]:
    """What is written until the last control, and that."""
    written = {1: b"", 2: b""}
    while True:
        message = await socket.recv()
        if isinstance(message, bytes):
            written[message[0]] += message[1:]
        elif (control := json.loads(message)).keys() & {"exit", "error"}:
            return written, control


async def ended(site: HostSite, **spec: Any) -> tuple[dict[int, bytes], dict[str, Any]]:
    async with attached(site, **spec) as socket:
        return await rest(socket)


async def shown(socket: ClientConnection, words: bytes) -> None:
    """Wait until the process has written this."""
    written = b""
    while words not in written:
        message = await socket.recv()
        written += message[1:] if isinstance(message, bytes) else b""


def exit_of(code: int | None, signal: str | None = None, reason: str | None = None) -> dict[str, Any]:
    return {"exit": {"code": code, "signal": signal, "reason": reason}}


ENDS: dict[str, tuple[dict[str, Any], bytes, bytes, dict[str, Any]]] = {
    "a code": ({"argv": ["sh", "-c", "echo out; echo err >&2; exit 7"]}, b"out\n", b"err\n", exit_of(7)),
    "a signal": ({"shell": "kill -TERM $$"}, b"", b"", exit_of(None, "TERM")),
    "its time": ({"argv": ["sleep", "60"], "limits": {"timeout": 0.2}}, b"", b"", exit_of(None, "TERM", "timeout")),
    "no such program": ({"argv": ["not-there"]}, b"", b"not-there: command not found\n", exit_of(127)),
    "no program": ({"argv": ["/etc"]}, b"", b"/etc: Permission denied\n", exit_of(126)),
    "no stdin": ({"argv": ["cat"]}, b"", b"", exit_of(0)),
    "a user by number": ({"argv": ["id", "-u"], "user": "4321:55"}, b"4321\n", b"", exit_of(0)),
    "the groups of a number": ({"argv": ["id", "-G"], "user": "4321:55"}, b"55\n", b"", exit_of(0)),
    "odd values": (
        {"shell": 'printf %s "$ODD"', "environment": {"ODD": "a\nb'\"\\ $(id) ü\t"}},
        "a\nb'\"\\ $(id) ü\t".encode(), b"", exit_of(0),
    ),
    "a large environment": (
        {"shell": 'printf %s "${#LARGE}"', "environment": {"LARGE": "x" * 120_000, "MORE": "y" * 120_000}},
        b"120000", b"", exit_of(0),
    ),
    "a terminal": (
        {"shell": "stty size; printf %s $TERM", "terminal": {"cols": 77, "rows": 11, "term": "vt100"}},
        b"11 77\r\nvt100", b"", exit_of(0),
    ),
    "early closed outputs": ({"shell": "exec >&- 2>&-; sleep 0.2; exit 5"}, b"", b"", exit_of(5)),
    # Whose last words come after its own end.
    "a late child": ({"shell": "(sleep 0.3; echo late) & exit 3"}, b"late\n", b"", exit_of(3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDS)
async def test_a_process_runs_as_it_was_asked_for_and_says_how_it_ended(kind: str, site: HostSite) -> None:
    spec, out, err, control = ENDS[kind]
    assert await ended(site, **spec) == ({1: out, 2: err}, control)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no such directory": ({"argv": ["true"], "directory": "/not/there"}, "invalid_body", "directory /not/there"),
    "no such user": ({"argv": ["true"], "user": "nobody-such"}, "invalid_body", "no user nobody-such"),
    "an id that means none": ({"argv": ["true"], "user": "4294967295"}, "invalid_body", "ids end at"),
    "neither argv nor shell": ({}, "invalid_body", "exactly one of argv and shell"),
    "an unknown field": ({"argv": ["true"], "colour": "red"}, "invalid_body", "colour"),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_a_process_that_cannot_be_started_is_an_error_with_its_field(kind: str, site: HostSite) -> None:
    spec, code, words = REFUSED[kind]
    _, control = await ended(site, **spec)
    assert control["error"]["error"] == code
    assert words in control["error"]["message"]


async def test_stdin_and_output_pass_byte_for_byte_and_wait_for_who_reads_them(site: HostSite) -> None:
    data = bytes(range(256)) * 20_000
    async with attached(site, argv=["cat"], stdin=True, window=2**16) as socket:
        window, taken, back = Window(WINDOW), Taken(2**16), bytearray()
        at, more = 0, asyncio.Event()

        async def feed() -> None:
            nonlocal at
            while at < len(data):
                more.clear()
                if not (room := min(window.room, PIECE)):
                    await more.wait()
                    continue
                await socket.send(bytes([STDIN]) + data[at : at + room])
                window.sent += len(data[at : at + room])
                at += room
            await socket.send(frame(eof=True))

        feeding = asyncio.create_task(feed())
        # Nothing is taken yet: what is on its way is what the windows and the pipes hold.
        await asyncio.sleep(0)
        while True:
            message = await socket.recv()
            if isinstance(message, str):
                control = json.loads(message)
                if "taken" in control:
                    window.take(control["taken"])
                    more.set()
                if "exit" in control:
                    break
                continue
            assert message[0] == STDOUT
            back += message[1:]
            assert len(back) - taken.total <= 2**16
            if taken.add(len(message) - 1):
                await socket.send(frame(taken=taken.total))
        await feeding
    assert bytes(back) == data
    assert control == exit_of(0)


async def test_a_client_that_acknowledges_nothing_is_sent_its_window_and_no_more(site: HostSite) -> None:
    async with attached(site, argv=["yes"], window=2**14) as socket:
        got = 0
        while got < 2**14:
            message = await socket.recv()
            got += len(message) - 1 if isinstance(message, bytes) else 0
        assert got == 2**14
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.3)
        await socket.send(frame(taken=got))
        assert isinstance(await socket.recv(), bytes)


async def test_signals_go_to_the_process_and_a_terminal_has_the_size_it_is_given(site: HostSite) -> None:
    script = "trap 'stty size' WINCH; echo here; while :; do sleep 0.05; done"
    async with attached(site, shell=script, terminal={}) as socket:
        await shown(socket, b"here")
        await socket.send(frame(resize=[123, 45]))
        await shown(socket, b"45 123")
        await socket.send(b"\x00\x03")
        assert (await rest(socket))[1] == exit_of(None, "INT")
    async with attached(
        site, shell="trap 'echo got it; exit 9' USR1; echo here; while :; do sleep 0.05; done"
    ) as socket:
        await shown(socket, b"here")
        await socket.send(frame(signal="SIGUSR1"))
        await shown(socket, b"got it")
        assert (await rest(socket))[1] == exit_of(9)


async def test_a_client_that_leaves_has_the_process_killed(site: HostSite) -> None:
    async with attached(site, shell="trap '' TERM HUP INT; echo $$; while :; do sleep 0.1; done") as socket:
        started = json.loads(await socket.recv())
        process = psutil.Process(started["started"]["pid"])
        assert await socket.recv() == f"\x01{process.pid}\n".encode()
    await until(lambda: not process.is_running(), "the end of the process")


async def test_a_connection_to_the_guest_that_breaks_is_an_error_and_the_next_process_has_another(
    site: HostSite, guest: LocalGuestServer
) -> None:
    async with attached(site, argv=["sleep", "60"]) as socket:
        assert "started" in json.loads(await socket.recv())
        await asyncio.to_thread(guest.cut)
        assert (await rest(socket))[1]["error"]["error"] == "guest_unreachable"
    assert (await ended(site, argv=["true"]))[1] == exit_of(0)


async def test_the_shell_that_waits_for_the_next_process_ends_with_the_connection_and_may_be_killed(
    site: HostSite, guest: LocalGuestServer
) -> None:
    def waiting() -> list[subprocess.Popen[bytes]]:
        return [each for each in guest.processes if "/requests;" in str(each.args) and each.poll() is None]

    async def ran_and_one_waits() -> subprocess.Popen[bytes]:
        assert (await ended(site, argv=["true"]))[1] == exit_of(0)
        await until(lambda: len(waiting()) == 1, "one shell that waits")
        return waiting()[0]

    first = await ran_and_one_waits()
    # The next process has it, and another one waits.
    second = await ran_and_one_waits()
    assert (first.returncode, second is first) == (0, False)
    second.kill()
    spare = guard_of(guest.shell)._spare
    assert spare
    await until(lambda: spare.channel is None, "word of its end")
    third = await ran_and_one_waits()
    assert third is not second
    await asyncio.to_thread(guest.cut)
    await until(lambda: not waiting(), "the end of all of them")


async def test_a_machine_has_room_for_so_many_and_no_more(site: HostSite) -> None:
    opened = [attached(site, argv=["cat"], stdin=True) for _ in range(MOST)]
    sockets = [await each.__aenter__() for each in opened]
    for socket in sockets:
        assert "started" in json.loads(await socket.recv())
    assert (await ended(site, argv=["true"]))[1]["error"]["error"] == "rate_limit_exceeded"
    for each in opened:
        await each.__aexit__(None, None, None)

    async def room() -> bool:
        return "exit" in (await ended(site, argv=["true"]))[1]

    await until(room, "room for one more")


async def test_a_first_frame_that_is_no_spec_ends_the_connection_with_the_reason(site: HostSite) -> None:
    for first in (b"\x00abc", "{", "[]", json.dumps({"argv": "ls"})):
        async with site.hosts.socket(site.found(), "processes", ("attach",)) as socket:
            await socket.send(first)
            assert (await rest(socket))[1]["error"]["error"] == "invalid_body"
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 4422
