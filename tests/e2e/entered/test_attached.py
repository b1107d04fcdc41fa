"""Commands and terminals in a real machine, by the command line and the client, as people and programs use them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyte
import pytest

from foundation.errors import InvalidBody, MachineUnavailable, TaskNotFound
from tests.e2e.conftest import Entered, until

pytestmark = pytest.mark.timeout(300)

SANDBOX = str(Path(__file__).parents[3] / ".venv/bin/sandbox")


def words(entered: Entered, command: str, *rest: str) -> list[str]:
    server = f"http://127.0.0.1:{entered.site.settings.api_port}"
    return [SANDBOX, "task", command, "--server", server, *rest]


def run(entered: Entered, *rest: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """`sandbox task exec` with these words, of which the first are options."""
    return subprocess.run(words(entered, "exec", *rest), input=data, capture_output=True, timeout=120, check=False)


def left(entered: Entered, mark: str) -> str:
    """The processes of the machine that have the mark in their command lines."""
    return entered.site.client.exec(entered.id, ["pgrep", "-af", f"[{mark[0]}]{mark[1:]}"]).stdout.decode()


def test_a_command_has_its_exit_code_its_streams_and_its_surroundings(entered: Entered) -> None:
    script = 'pwd; id -un; printf "%s|" "$A" "$B"; printf "\\377\\000" ; echo complaint >&2; exit 7'
    done = run(entered, entered.id, "-e", "A=x y\n'\"$(id)", "-e", "B=ü", "--", "sh", "-c", script)
    wanted = b"/workspace\nagent\n" + "x y\n'\"$(id)|ü|".encode() + b"\xff\x00"
    assert (done.returncode, done.stdout, done.stderr) == (7, wanted, b"complaint\n")

    done = run(entered, "-u", "4321", "-w", "/tmp", entered.id, "sh", "-c", "id -u; pwd; kill -KILL $$")
    assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, b"4321\n/tmp\n")

    done = run(entered, entered.id, "--", "not-there")
    assert (done.returncode, done.stderr) == (127, b"not-there: command not found\n")
    done = run(entered, "-w", "/not/there", entered.id, "--", "true")
    assert (done.returncode, b"/not/there cannot be entered" in done.stderr) == (1, True)
    assert run(entered, "never-was", "--", "true").returncode == 2


def test_what_goes_in_and_out_is_the_same_byte_for_byte(entered: Entered, tmp_path: Path) -> None:
    data, back = tmp_path / "data", tmp_path / "back"
    data.write_bytes(os.urandom(50_000_000))
    with data.open("rb") as source, back.open("wb") as target:
        command = words(entered, "exec", "-i", entered.id, "--", "cat")
        assert subprocess.run(command, stdin=source, stdout=target, timeout=200, check=False).returncode == 0
    assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(data.read_bytes()).digest()


def test_many_at_once_and_who_reads_no_more_ends_the_command(entered: Entered) -> None:
    client = entered.site.client

    def one(number: int) -> tuple[int | None, bytes]:
        done = client.exec(entered.id, shell=f"cat; echo {number}; exit {number}", stdin=b"x" * 1000)
        return done.exit_code, done.stdout

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(20))) == [(n, b"x" * 1000 + f"{n}\n".encode()) for n in range(20)]

    command = subprocess.list2cmdline(words(entered, "exec", entered.id, "--", "yes", "mark-of-yes"))
    piped = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | head -n 1"], capture_output=True, check=False)
    assert (piped.returncode, piped.stdout, piped.stderr) == (141, b"mark-of-yes\n", b"")
    until(lambda: not left(entered, "mark-of-yes"))


TREE = """
echo mark-of-tree >/tmp/mark-of-tree
setsid sh -c 'trap "" TERM HUP INT; while :; do sleep 7001; done' mark-of-tree >/dev/null 2>&1 &
nohup sh -c 'while :; do sleep 7002; done' mark-of-tree >/dev/null 2>&1 &
trap '' TERM HUP INT
echo ready
while :; do sleep 7003; done
"""


@pytest.mark.parametrize("way", ["the client is killed", "the command ends", "the worker is killed"])
def test_nothing_of_a_command_is_left_when_its_client_is_gone(entered: Entered, way: str) -> None:
    script = TREE if way != "the command ends" else TREE.replace("while :; do sleep 7003; done", "exit 3")
    command = words(entered, "exec", entered.id, "--", "sh", "-c", script, "mark-of-tree")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        if way == "the client is killed":
            assert len(left(entered, "mark-of-tree").splitlines()) >= 3
            process.kill()
        elif way == "the worker is killed":
            os.kill(entered.site.stack.pids()["worker"], signal.SIGKILL)
        code = process.wait(60)
        assert process.stderr
        said = process.stderr.read().decode()
    if way == "the command ends":
        assert code == 3
    if way == "the worker is killed":
        assert (code, "went away" in said) == (5, True), said
        until(lambda: reachable(entered))
    until(lambda: not left(entered, "mark-of-tree"))
    assert left(entered, "sleep 700") == ""


def reachable(entered: Entered) -> bool:
    reply = httpx.post(f"{entered.url}/exec", json={"argv": ["true"]}, timeout=60)
    return reply.status_code == 200


def test_ctrl_c_goes_to_the_command_and_a_second_one_leaves(entered: Entered) -> None:
    for script, times, code in (("sleep 60", 1, 130), ("trap '' INT; echo ready; sleep 60", 2, 130)):
        command = words(entered, "exec", entered.id, "--", "sh", "-c", f"echo ready; {script}")
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout
            for _ in range(times):
                assert process.stdout.readline() == b"ready\n"
                process.send_signal(signal.SIGINT)
                time.sleep(0.3)
            assert process.wait(30) == code


class Emulator:
    """A person's terminal: what a program writes becomes a screen."""

    def __init__(self, command: list[str], cols: int, rows: int) -> None:
        self.screen = pyte.Screen(cols, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._own, its = pty.openpty()
        self._size(cols, rows)
        self.before = termios.tcgetattr(its)
        self.its = its
        self.process = subprocess.Popen(
            command, stdin=its, stdout=its, stderr=its, start_new_session=True, env=os.environ | {"TERM": "xterm"},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 -- as terminals do it
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def resize(self, cols: int, rows: int) -> None:
        self.screen.resize(rows, cols)
        self._size(cols, rows)

    def shows(self, condition: Callable[[str], bool]) -> None:
        until(lambda: condition(self.text), 30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.its)
        self._reader.join(5)
        os.close(self._own)

    def _size(self, cols: int, rows: int) -> None:
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def _read(self) -> None:
        try:
            while data := os.read(self._own, 65536):
                self._stream.feed(data)
        except OSError:
            return


@contextmanager
def emulator(command: list[str], cols: int = 90, rows: int = 20) -> Iterator[Emulator]:
    terminal = Emulator(command, cols, rows)
    try:
        yield terminal
    finally:
        terminal.close()


# Draws a frame of the terminal's size, and how large that is; goes on with any key but q.
FULL_SCREEN = """
import curses
def draw(screen):
    key = ""
    while key != "q":
        screen.erase(); screen.border()
        rows, cols = screen.getmaxyx()
        screen.addstr(1, 2, f"size {cols}x{rows} key {key}")
        screen.addstr(2, 2, "bright", curses.A_BOLD)
        screen.refresh()
        key = screen.getkey()
curses.wrapper(draw)
print("left the screen")
"""


def test_a_full_screen_program_has_the_persons_terminal_and_gives_it_back(entered: Entered) -> None:
    with emulator(words(entered, "exec", "-it", entered.id, "--", "python3", "-c", FULL_SCREEN)) as terminal:
        terminal.shows(lambda text: "size 90x20 key" in text)
        lines = terminal.screen.display
        assert len(lines) == 20
        assert (lines[0][0], lines[19][88:89]) not in {(" ", ""), (" ", " ")}
        assert terminal.screen.buffer[2][2].bold
        terminal.type("x")
        terminal.shows(lambda text: "size 90x20 key x" in text)
        terminal.resize(60, 12)
        terminal.shows(lambda text: "size 60x12 key KEY_RESIZE" in text)
        # Raw: the key of an interrupt is a key, as the program wants it or not.
        terminal.type("q")
        terminal.shows(lambda text: "left the screen" in text)
        assert terminal.process.wait(30) == 0
        assert termios.tcgetattr(terminal.its) == terminal.before


def test_a_shell_is_a_login_that_ends_with_what_was_started_in_it(entered: Entered) -> None:
    with emulator(words(entered, "shell", entered.id)) as terminal:
        terminal.shows(lambda text: text.endswith("$"))
        terminal.type("shopt -q login_shell && echo login of $(id -un) in $PWD; tty; stty size\r")
        terminal.shows(lambda text: "login of agent in /workspace" in text and "20 90" in text)
        terminal.type("nohup sleep 7009 & sleep 7008\r")
        until(lambda: left(entered, "sleep 7008"))
        terminal.type("\x03")
        until(lambda: not left(entered, "sleep 7008"))
        # A suspension gives the terminal back, and takes it again.
        terminal.process.send_signal(signal.SIGTSTP)
        until(lambda: termios.tcgetattr(terminal.its) == terminal.before)
        terminal.process.send_signal(signal.SIGCONT)
        until(lambda: termios.tcgetattr(terminal.its) != terminal.before)
        terminal.type("exit 5\r")
        assert terminal.process.wait(30) == 5
        assert termios.tcgetattr(terminal.its) == terminal.before
    until(lambda: not left(entered, "sleep 7009"))

    with emulator(words(entered, "shell", entered.id)) as terminal:
        terminal.shows(lambda text: text.endswith("$"))
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(30) == -signal.SIGTERM
        assert termios.tcgetattr(terminal.its) == terminal.before


def test_programs_are_answered_in_lines_and_what_cannot_be_is_said(entered: Entered) -> None:
    body = {"argv": ["sh", "-c", "cat; printf '\\377' >&2"], "stdin": "aGkK"}
    reply = httpx.post(f"{entered.url}/exec", json=body, timeout=60)
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert {"stream": "stdout", "text": "hi\n"} in lines
    assert {"stream": "stderr", "data": "/w=="} in lines
    assert lines[-1] == {"exit": {"code": 0, "signal": None, "reason": None}}
    client = entered.site.client
    with pytest.raises(InvalidBody, match="no user"):
        client.exec(entered.id, ["true"], user="never-was")
    with pytest.raises(TaskNotFound):
        client.exec("never-was", ["true"])
    assert client.exec(entered.id, ["sleep", "60"], limits={"timeout": 1}).reason == "timeout"
    other = entered.site.submit("open session")
    with pytest.raises(MachineUnavailable, match="no machine yet"):
        client.exec(other, ["true"])
    client.cancel(other, force=True)
    client.wait(other, poll_seconds=0.2)
    with pytest.raises(MachineUnavailable, match="has ended"):
        client.exec(other, ["true"])
    kinds = {event["kind"] for event in entered.events("access")}
    assert {"exec", "shell"} <= kinds
