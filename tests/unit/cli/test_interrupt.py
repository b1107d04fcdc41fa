"""Ctrl-C as real processes get it: every command that goes on looking leaves with 130, and the terminal as it was."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.stand_ins.foreign_servers import serving, silent

PATIENCE = 60.0
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"
AT = "2026-01-29T10:00:00Z"
RUN = {"id": "x", "name": "n", "state": "running", "created_at": AT, "state_changed_at": AT}
PAGE = {"tasks": [RUN], "total_count": 1, "limit": 100, "offset": 0, "has_more": False}
#: Each command that goes on looking.
WATCHING = [
    ["task", "submit", "task.yaml", "--follow"],
    ["task", "submit", "task.yaml", "--watch"],
    ["task", "submit", "task.yaml", "--wait"],
    ["task", "status", "x", "--watch"],
    ["task", "status", "x", "--watch", "--json"],
    ["task", "logs", "x", "--follow"],
    ["task", "logs", "x", "--follow", "--raw"],
    ["task", "list", "--watch"],
    ["--watch", "1s", "task", "list"],
    ["task", "wait", "x", "y"],
]


def running(peer: socket.socket, request: bytes) -> None:
    """A server whose only run never ends, and whose log is open without a word."""
    line = request.split(b"\r\n", 1)[0]
    head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: "
    if b"/logs" in line:
        peer.sendall(f"{head}application/x-ndjson\r\n\r\n".encode())
        silent(peer)
        return
    data = {"task_id": "x"} if line.startswith(b"POST") else RUN if b"/tasks/" in line else PAGE
    body = json.dumps(data).encode()
    peer.sendall(f"{head}application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "task.yaml").write_text("kind: Task\n")
    return {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}


def start(words: list[str], directory: Path, environment: dict[str, str], **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-P", "-m", "cli", *words], cwd=directory, env=environment, **streams)


def wait_for(asked: list[bytes], count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(asked) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(asked) >= count


@pytest.mark.parametrize("answering", [False, True], ids=["while it connects", "while it looks"])
def test_ctrl_c_ends_every_command_that_looks_on_with_130(
    answering: bool, environment: dict[str, str], tmp_path: Path
) -> None:
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Each command has a server of its own, so that each is seen to have asked before it is interrupted.
    asked: list[list[bytes]] = [[] for _ in WATCHING]

    def speak(requests: list[bytes], peer: socket.socket, request: bytes) -> None:
        requests.append(request)
        if answering:
            running(peer, request)
        else:
            silent(peer)

    with contextlib.ExitStack() as servers:
        urls = [servers.enter_context(serving(partial(speak, requests))) for requests in asked]
        processes = [
            start(words, tmp_path, environment | {"TASKYARD_SERVER": url}, **streams)
            for words, url in zip(WATCHING, urls, strict=True)
        ]
        for words, requests in zip(WATCHING, asked, strict=True):
            # A submission asks once for itself and once more for what it then looks at.
            wait_for(requests, 2 if answering and "submit" in words else 1)
        for process in processes:
            process.send_signal(signal.SIGINT)
        for words, process in zip(WATCHING, processes, strict=True):
            _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 130, (words, err)
            assert b"Traceback" not in err, (words, err)


def test_ctrl_c_leaves_the_terminal_as_it_was(environment: dict[str, str], tmp_path: Path) -> None:
    with serving(running) as url:
        environment["TASKYARD_SERVER"] = url
        for words in (["task", "status", "x", "--watch"], ["task", "logs", "x", "--follow"]):
            main, terminal = pty.openpty()
            process = start(words, tmp_path, environment, stdin=terminal, stdout=terminal, stderr=terminal)
            os.close(terminal)
            shown = b""
            for piece in _pieces(main):
                if HIDE_CURSOR in shown + piece and HIDE_CURSOR not in shown:
                    process.send_signal(signal.SIGINT)
                shown += piece
            os.close(main)
            assert process.wait(PATIENCE) == 130
            assert b"Traceback" not in shown
            assert shown.rfind(SHOW_CURSOR) > shown.rfind(HIDE_CURSOR) >= 0


def _pieces(descriptor: int) -> Iterator[bytes]:
    # The kernel says by an error that the terminal's last program has left.
    with contextlib.suppress(OSError):
        while piece := os.read(descriptor, 65536):
            yield piece


def test_a_reader_that_leaves_ends_the_command_quietly_with_141(environment: dict[str, str], tmp_path: Path) -> None:
    body = json.dumps(PAGE | {"tasks": [RUN] * 5000}).encode()

    def many(peer: socket.socket, _request: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        peer.sendall(f"{head}\r\n\r\n".encode() + body)

    with serving(many) as url:
        environment["TASKYARD_SERVER"] = url
        for words in (["task", "list"], ["task", "list", "--json"], ["task", "list", "-o", "yaml"], ["--help"]):
            reading, writing = os.pipe()
            process = start(words, tmp_path, environment, stdout=writing, stderr=subprocess.PIPE)
            os.close(writing)
            if words != ["--help"]:
                os.read(reading, 10)
            os.close(reading)
            _, err = process.communicate(timeout=PATIENCE)
            assert (process.returncode, err) == (141, b""), words
