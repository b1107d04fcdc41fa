"""A guest's way out: the egress proxy beside `socat`, both between the descriptor that QEMU gives and the same origin.

Each connection is handed over as QEMU does it: by starting a program for it. The proxy, the origin and the guest are a
process each.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shlex
import socket
import ssl
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from activities.machine.authority import ensure_authority
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.lab import Lab
from foundation.child_environment import child_environment
from foundation.errors import TaskyardError
from foundation.settings import Settings
from machines.hypervisor.handover import handover_command
from machines.network import EGRESS_SOCKET
from worker.egress.egress import Egress
from worker.event_loop import run_on_loop
from workflows.specs.wire import NetworkMode, NetworkPolicy

_STREAM_BYTES = 200 * 2**20
_REQUESTS = 300
_CONNECTIONS = 30
_MANY = 200
_MACHINE = "vm-00000000000000aa"
_NAME = "origin.example.org"
_ADDRESS = "127.0.4.1"
_BLOCK = 64 * 1024
_LIMIT_SECONDS = 120.0
_REQUEST = f"GET / HTTP/1.1\r\nHost: {_NAME}\r\n\r\n".encode()
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + bytes(1024)
# The first byte of a connection to the origin: no protocol's.
_STREAM = b"\x00"
_TLS = b"\x16"

# Opens a connection to the origin through one of the sides, and gives it with the program that is at work for it.
Open = Callable[[], tuple[socket.socket, "subprocess.Popen[bytes] | None"]]


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ty-")))
        certificate = directory / "certificate.pem"
        (directory / "authority").mkdir()
        certificate.write_bytes(ensure_authority(directory / "authority", [_NAME]).leaf(_NAME, datetime.now(UTC)))
        _, port = stack.enter_context(_process(_serve_origin, str(certificate)))
        settings = lab.settings.model_copy(
            update={"home": directory, "egress_allowed_hosts": [], "egress_private_networks": [f"{_ADDRESS}/32"]}
        )
        settings = Settings.model_validate(settings.model_dump())
        (settings.machines / _MACHINE).mkdir(parents=True)
        proxy, _ = stack.enter_context(_process(_serve_proxy, settings, _NAME, _ADDRESS))
        ours = _through_proxy(settings.sockets, port)
        yield Sides(
            lambda: _measure(ours, lambda _: proxy.memory_info().rss),
            lambda: _measure(_through_socat(port), _of_programs),
        )


def _measure(opened: Open, memory: Callable[[Sequence[subprocess.Popen[bytes]]], int]) -> Run:
    figures = {"stream": _stream(opened), "request": _requests(opened), "connection": _connections(opened)}
    before = memory([])
    with ExitStack() as stack:
        programs = []
        for _ in range(_MANY):
            connection, program = opened()
            stack.enter_context(_held(connection, program))
            # Answers that nobody reads: what lies on the way is on the way.
            connection.sendall(_STREAM)
            programs += [program] if program else []
        figures["memory"] = (memory(programs) - before) / 2**20
    return Run(figures)


def _stream(opened: Open) -> float:
    with _held(*opened()) as connection:
        began = time.perf_counter()
        connection.sendall(_STREAM)
        left = _STREAM_BYTES
        while left:
            left -= len(_received(connection, min(left, _BLOCK)))
        return time.perf_counter() - began


def _requests(opened: Open) -> float:
    took = []
    with _held(*opened()) as connection, _trusting().wrap_socket(connection, server_hostname=_NAME) as inside:
        for _ in range(_REQUESTS):
            began = time.perf_counter()
            _ask(inside)
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


def _connections(opened: Open) -> float:
    took = []
    for _ in range(_CONNECTIONS):
        began = time.perf_counter()
        with _held(*opened()) as connection, _trusting().wrap_socket(connection, server_hostname=_NAME) as inside:
            _ask(inside)
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


def _ask(connection: socket.socket) -> None:
    connection.sendall(_REQUEST)
    left = len(_ANSWER)
    while left:
        left -= len(_received(connection, left))


def _received(connection: socket.socket, most: int) -> bytes:
    data = connection.recv(most)
    if not data:
        raise TaskyardError("The connection to the origin has ended; run the case again")
    return data


def _through_proxy(sockets: Path, port: int) -> Open:
    handed = shlex.split(handover_command(_MACHINE, EGRESS_SOCKET))
    asked = f"CONNECT {_NAME}:{port} HTTP/1.1\r\nHost: {_NAME}:{port}\r\n\r\n".encode()

    def opened() -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
        mine, theirs = _pair()
        with theirs:
            program = subprocess.Popen(handed, stdin=theirs, cwd=sockets, env=_environment())
        mine.sendall(asked)
        said = b""
        while not said.endswith(b"\r\n\r\n"):
            said += _received(mine, 1)
        program.wait()
        return mine, None

    return opened


def _through_socat(port: int) -> Open:
    def opened() -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
        mine, theirs = _pair()
        with theirs:
            command = ["socat", "-", f"TCP:{_ADDRESS}:{port},nodelay"]
            return mine, subprocess.Popen(
                command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=_environment()
            )

    return opened


def _environment() -> dict[str, str]:
    """What a program has that QEMU starts: reading the locale's files is a tenth of its start."""
    return child_environment(LC_ALL="C")


def _pair() -> tuple[socket.socket, socket.socket]:
    mine, theirs = socket.socketpair()
    mine.settimeout(_LIMIT_SECONDS)
    return mine, theirs


@contextmanager
def _held(connection: socket.socket, program: subprocess.Popen[bytes] | None) -> Iterator[socket.socket]:
    """The connection for the block, and the program ended with it."""
    try:
        with connection:
            yield connection
    finally:
        if program is not None:
            program.kill()
            program.wait()


def _of_programs(programs: Sequence[subprocess.Popen[bytes]]) -> int:
    """What programs have in memory, with their parts of what they share."""
    return sum(psutil.Process(each.pid).memory_full_info().pss for each in programs)


def _trusting() -> ssl.SSLContext:
    """What is measured is the way, not the look at a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _process(serve: Callable[..., None], *arguments: object) -> Iterator[tuple[psutil.Process, int]]:
    """A process of this program, and the number that it tells when it serves."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        if not ours.poll(_LIMIT_SECONDS):
            raise TaskyardError("A server of the benchmark does not start; run the case again")
        yield psutil.Process(process.pid), ours.recv()
    finally:
        process.kill()
        process.join()


def _serve_proxy(told: Connection, settings: Settings, name: str, address: str) -> None:
    run_on_loop(_proxy(told, settings, name, address))


async def _proxy(told: Connection, settings: Settings, name: str, address: str) -> None:
    egress = Egress(settings, resolver={name: [address]}.__getitem__)
    await egress.start()
    egress.set_policy(_MACHINE, NetworkPolicy(mode=NetworkMode.OUTBOUND, hosts=[name]))
    told.send(os.getpid())
    await asyncio.Event().wait()


def _serve_origin(told: Connection, certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server((_ADDRESS, 0), backlog=_MANY) as listener:
        told.send(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection, context), daemon=True).start()


def _serve(connection: socket.socket, context: ssl.SSLContext) -> None:
    with suppress(OSError), connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connection.recv(1, socket.MSG_PEEK) != _TLS:
            connection.recv(1)
            block = bytes(_BLOCK)
            for _ in range(_STREAM_BYTES // _BLOCK):
                connection.sendall(block)
            connection.recv(1)
            return
        with context.wrap_socket(connection, server_side=True) as inside:
            while inside.recv(_BLOCK):
                inside.sendall(_ANSWER)


CASE = Case(
    name="egress",
    title="A guest's way out",
    by_hand="`socat - TCP:…`, started for each connection as the proxy's handover is",
    figures=(
        Figure("stream", "200 MB in one stream", ratio_limit=1 / 0.7, label="200 MB through the egress proxy"),
        Figure(
            "request",
            "a small request over TLS in an open tunnel",
            unit="ms",
            ratio_limit=1.3,
            label="a request through the egress proxy",
        ),
        Figure("connection", "a new connection with TLS, and a request in it", unit="ms", ratio_limit=1.3),
        Figure("memory", "memory of 200 connections whose guest does not read", unit="MiB", limit=100),
    ),
    open=_open,
    repeat=7,
    warm_up=True,
)
