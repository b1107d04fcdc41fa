"""Detached processes in a real machine: started once, followed by offset, fed, signalled, limited, and never lost."""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from foundation.errors import Conflict, InvalidParameter, NotFound, ServiceUnavailable, SessionClosed
from foundation.service.processes import Limits, ProcessRecord, ProcessSpec
from foundation.settings import Settings
from guest.contract import AGENT_KEY
from machines.host import MachineHost
from machines.processes.detached import DetachedProcess, DetachedProcesses
from machines.processes.following import Chunk, Ended, Stream
from tests.e2e.conftest import Entered, until

pytestmark = pytest.mark.timeout(600)

SECONDS_MOST = 120.0
FIFTY_MEGABYTES = """
import hashlib, os, sys
data = os.urandom(2**20)
for _ in range(50):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]
print(hashlib.sha256(data * 50).hexdigest(), file=sys.stderr)
"""
LOOP = "while :; do sleep 0.1; done"


class Guest:
    """The processes of the machine, and short ways to what tests ask of them."""

    def __init__(self, settings: Settings, machine_id: str) -> None:
        self.settings = settings
        self.id = machine_id
        self.shell = MachineHost(settings).connect(machine_id)
        self.all = DetachedProcesses(self.shell)

    def start(self, shell: str, key: str | None = None, **fields: Any) -> DetachedProcess:
        process = self.all.process(key or f"p-{secrets.token_hex(4)}")
        self.all.start(ProcessSpec(key=process.places.key, shell=shell, **fields))
        return process

    def run(self, shell: str, **fields: Any) -> tuple[ProcessRecord, str, str]:
        """How it ended, and what it said."""
        process = self.start(shell, **fields)
        record = process.wait(SECONDS_MOST)
        return record, read(process, "stdout").decode(), read(process, "stderr").decode()


def read(process: DetachedProcess, stream: Stream, offset: int = 0, most: int | None = None) -> bytes:
    """What it writes from the offset on, to its end or until there are as many bytes."""
    data, end = bytearray(), time.monotonic() + SECONDS_MOST
    for piece in process.follow({stream: offset}):
        assert time.monotonic() < end
        if isinstance(piece, Chunk):
            assert piece.offset == offset + len(data)
            data += piece.data
        if isinstance(piece, Ended) or (most is not None and len(data) >= most):
            break
    return bytes(data)


@pytest.fixture
def guest(entered: Entered) -> Iterator[Guest]:
    guest = Guest(entered.site.settings, entered.machine)
    yield guest
    running = [each.key for each in guest.all.list() if each.state == "running" and each.key != AGENT_KEY]
    for key in running:
        guest.all.process(key).signal("KILL")
    guest.shell.close()
    assert running == []


def test_a_process_goes_on_while_its_host_is_away(entered: Entered) -> None:
    client, task = entered.site.client, entered.id
    asked = {"shell": f"echo $$; seq 1 20; read line; echo $line; sleep 5; {LOOP}", "stdin": True}
    started = client.start_process(task, "lasting", **asked)
    assert started.state == "running"
    reading = client.process_output(task, "lasting", follow=True)
    before = next(reading)
    os.kill(entered.site.stack.pids()["worker"], signal.SIGKILL)
    rest = b""
    with suppress(ServiceUnavailable):
        rest += b"".join(reading)
    fed = until(lambda: _unless_away(lambda: client.feed_process(task, "lasting", b"line\n", close=True)))
    assert fed == 5
    assert client.feed_process(task, "lasting", b"line\n", close=True) == 5
    # Asked for again, it is the same one.
    assert client.start_process(task, "lasting", **asked).state == "running"
    wanted = before + rest
    for piece in client.process_output(task, "lasting", offset=len(wanted), follow=True):
        wanted += piece
        if wanted.endswith(b"line\n"):
            break
    assert wanted.split(b"\n", 1)[1] == b"".join(b"%d\n" % number for number in range(1, 21)) + b"line\n"
    client.signal_process(task, "lasting", "KILL")
    ended = client.process(task, "lasting", wait_seconds=60)
    assert (ended.state, ended.signal, ended.stdout_bytes) == ("exited", "KILL", len(wanted))
    assert {process.key for process in client.processes(task)} >= {"agent", "lasting"}
    with pytest.raises(Conflict):
        client.start_process(task, "lasting", ["true"])
    with pytest.raises(NotFound):
        client.process(task, "never-was")
    assert client.get(task).state == "running"


def test_fifty_megabytes_come_byte_for_byte_over_a_connection_that_breaks(guest: Guest) -> None:
    size = 50 * 2**20
    process = guest.start(f"python3 -c {shlex.quote(FIFTY_MEGABYTES)}", key="large")
    first = read(process, "stdout", most=20 * 2**20)
    guest.shell.close()
    # Another worker, which knows of nothing but the machine.
    other = Guest(guest.settings, guest.id).all.process("large")
    data = first + read(other, "stdout", len(first))
    record = other.record()
    assert (record.state, record.exit_code, record.stdout_bytes, len(data)) == ("exited", 0, size, size)
    assert read(other, "stderr").decode().strip() == hashlib.sha256(data).hexdigest()
    assert read(other, "stdout", size - 5) == data[-5:]


def test_twenty_at_once_and_each_once_for_its_key(guest: Guest) -> None:
    def one(number: int) -> tuple[str, int | None]:
        key = f"many-{number % 20}"
        process = guest.start(f"echo {key}; sleep 1; echo again $(ls /tmp/{key} 2>&1); touch /tmp/{key}; exit 3", key)
        record = process.wait(SECONDS_MOST)
        return read(process, "stdout").decode(), record.exit_code

    with ThreadPoolExecutor(20) as threads:
        said = list(threads.map(one, range(40)))
    missing = "again ls: cannot access '/tmp/many-{0}': No such file or directory\n"
    assert said == [(f"many-{n % 20}\n{missing.format(n % 20)}", 3) for n in range(40)]
    with pytest.raises(Conflict, match="many-1"):
        guest.start("true", "many-1")
    assert {f"many-{n}" for n in range(20)} <= {record.key for record in guest.all.list()}


def test_what_a_process_is_given(guest: Guest) -> None:
    record, said, _ = guest.run(
        'id -un; pwd; echo $HOME $USER $SHELL; echo "$A"; echo $HTTPS_PROXY', environment={"A": "x y\n$z"}
    )
    assert (record.exit_code, record.signal) == (0, None)
    assert said == "agent\n/workspace\n/home/agent agent /bin/bash\nx y\n$z\nhttp://10.0.2.101:3128\n"
    _, said, _ = guest.run("id; pwd; echo $HOME -$USER-", user="4711:4712", directory="/tmp")
    assert said == "uid=4711 gid=4712 groups=4712\n/tmp\n/ --\n"
    _, said, _ = guest.run("id -u; id -g; cat; pwd", user="0", directory="/root")
    assert said == "0\n0\n/root\n"
    with pytest.raises(InvalidParameter, match="nobody-there"):
        guest.start("true", user="nobody-there")
    secret = f"canary-{secrets.token_hex(8)}"
    process = guest.start("sleep 3", environment={"SECRET": secret})
    assert secret not in guest.shell.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; ps axww").stdout.decode()
    process.signal("KILL")
    process.wait(SECONDS_MOST)


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"argv": ["no-such-program"]}, 127, "no-such-program"),
        ({"argv": ["/etc/passwd"]}, 126, "denied"),
        ({"argv": ["true"], "directory": "/no/such"}, 126, "/no/such"),
        ({"argv": ["true"], "directory": "/root"}, 126, "/root"),
        ({"argv": ["sh", "-c", "printf '%s.' \"$@\"; exit 7", "x", "", "a b", "'", "\n", "ü"]}, 7, ""),
    ],
)
def test_what_cannot_be_begun_ends_with_what_shells_say(
    guest: Guest, fields: dict[str, Any], code: int, said: str
) -> None:
    process = guest.all.process(f"p-{secrets.token_hex(4)}")
    guest.all.start(ProcessSpec(key=process.places.key, **fields))
    record = process.wait(SECONDS_MOST)
    assert (record.state, record.exit_code) == ("exited", code)
    assert said in read(process, "stderr").decode()
    if code == 7:
        assert read(process, "stdout").decode() == ".a b.'.\n.ü."


def test_stdin_comes_by_offset_and_once(guest: Guest) -> None:
    data = secrets.token_bytes(3 * 2**20)
    process = guest.start("cat", stdin=True)
    assert process.feed(0, data[:100_000]) == 100_000
    assert process.feed(0, data[:100_000]) == 100_000
    with pytest.raises(Conflict, match="before"):
        process.feed(200_000, b"too early")
    assert process.feed(50_000, data[50_000:1_000_000]) == 1_000_000
    assert process.feed(1_000_000, data[1_000_000:]) == len(data)
    process.close()
    process.close()
    assert process.feed(1_000_000, data[1_000_000:]) == len(data)
    with pytest.raises(SessionClosed):
        process.feed(len(data), b"too late")
    assert process.wait(SECONDS_MOST).exit_code == 0
    assert read(process, "stdout") == data


def test_signals_reach_the_whole_group_and_its_end_is_recorded(guest: Guest) -> None:
    child = f"(trap 'echo child; exit' USR1; echo ready; {LOOP})"
    process = guest.start(f"trap 'echo parent; wait; exit 9' USR1; {child} & {LOOP}")
    read(process, "stdout", most=6)
    process.signal("USR1")
    record = process.wait(SECONDS_MOST)
    assert (record.exit_code, record.signal) == (9, None)
    assert sorted(read(process, "stdout").decode().split()) == ["child", "parent", "ready"]
    with pytest.raises(Conflict):
        process.signal("TERM")
    with pytest.raises(InvalidParameter):
        process.signal("NONE")
    process = guest.start(LOOP)
    process.signal("TERM")
    record = process.wait(SECONDS_MOST)
    assert (record.exit_code, record.signal, record.reason) == (None, "TERM", None)
    process = guest.start(f"trap '' TERM INT HUP; setsid sh -c \"trap '' TERM; {LOOP}\" & {LOOP}")
    process.signal("KILL")
    assert process.wait(SECONDS_MOST).signal == "KILL"
    with pytest.raises(NotFound):
        guest.all.process("never-started").record()


def test_limits_end_a_process_and_say_which(guest: Guest) -> None:
    limited = {
        "timeout": guest.start("trap '' TERM; while :; do sleep 0.1; done", limits=Limits(timeout=1)),
        "memory": guest.start("python3 -c 'len(str(8) * 2**28)'", limits=Limits(memory_bytes=2**25)),
        "cpu": guest.start("while :; do :; done", limits=Limits(cpu_seconds=1)),
        "files": guest.start("ulimit -n; ulimit -t", limits=Limits(open_files=99, cpu_seconds=77)),
        "processes": guest.start("for n in 1 2 3 4 5 6; do sleep 2 & done; wait", limits=Limits(processes=4)),
    }
    ended = {name: process.wait(SECONDS_MOST) for name, process in limited.items()}
    assert (ended["timeout"].signal, ended["timeout"].reason) == ("KILL", "timeout")
    assert ended["memory"].reason == "memory" or ended["memory"].exit_code not in (0, None), ended["memory"]
    assert ended["cpu"].signal in ("XCPU", "KILL")
    assert read(limited["files"], "stdout") == b"99\n77\n"
    assert b"fork" in read(limited["processes"], "stderr")


def test_output_beyond_what_is_kept_stops_its_writer(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machines.processes.launch.OUTPUT_BYTES_MOST", 2**20)
    process = guest.start("(sleep 60; echo late) & yes")
    record = process.wait(SECONDS_MOST)
    assert (record.signal, record.reason) == ("KILL", "output")
    assert record.stdout_bytes > 2**20


# What a root of the guest does to the process's end, and the states in which it may end.
HOSTILE = {
    "forged": ("printf '0 0 0\\n' >>$R; sleep 0.5; exit 4", ("exited", 0)),
    "removed": ("rm $R; exit 4", ("exited", 4)),
    "directory": ("rm $R; mkdir $R; exit 4", ("lost", None)),
    "fifo": ("rm $R; mkfifo $R; kill -9 $PPID; exit 4", ("lost", None)),
    "zeros": ("rm $R; ln -s /dev/zero $R; exit 4", ("lost", None)),
    "nonsense": ("head -c 100000 /dev/urandom >$R; kill -9 $PPID", ("lost", None)),
    "runner killed": ("kill -9 $PPID; sleep 60", ("exited", None)),
    "group killed": ("echo 1 >$G/cgroup.kill", ("exited", None)),
    "all removed": ("rm -r /run/taskyard/processes/$K; kill -9 $PPID", ("lost", None)),
}


def test_whatever_a_root_of_the_guest_does_to_its_record_there_is_an_end(guest: Guest) -> None:
    processes = {}
    for name, (doing, _) in HOSTILE.items():
        key = name.replace(" ", "-")
        group = f"/sys/fs/cgroup/system.slice/taskyard-process-{key}.service"
        places = f"K={key}; R=/run/taskyard/processes/{key}/exit; G={group}"
        processes[name] = guest.start(f"{places}; {doing}", key, user="root")
    ended = {name: process.wait(SECONDS_MOST) for name, process in processes.items()}
    assert {name: (record.state, record.exit_code) for name, record in ended.items()} == {
        name: state for name, (_, state) in HOSTILE.items()
    }


def test_a_frozen_process_is_killed(guest: Guest) -> None:
    process = guest.start(
        "echo ready; echo 1 >/sys/fs/cgroup/system.slice/taskyard-process-frozen.service/cgroup.freeze; sleep 60",
        "frozen",
        user="root",
    )
    read(process, "stdout", most=6)
    assert process.wait(1).state == "running"
    process.signal("KILL")
    record = process.wait(SECONDS_MOST)
    assert (record.state, record.signal) == ("exited", "KILL")


def _unless_away(ask: Callable[[], int]) -> int | None:
    try:
        return ask()
    except ServiceUnavailable:
        return None
