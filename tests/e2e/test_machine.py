"""A real machine: what its guest sees and reaches, how it is entered, that it outlives its callers and ends whole.

Above 400 lines: one machine, which takes long to start, serves all that is tried with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import signal
import socket
import socketserver
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from foundation.errors import GuestUnreachable, MachineError, MachineLost, MachineNotFound
from foundation.settings import Settings
from machines import ssh
from machines.disks.workspace import build_workspace
from machines.host import MachineHost, Reservation
from machines.hypervisor import qmp
from machines.hypervisor.acceleration import seconds_to_start_kernel
from machines.identity import KNOWN_HOSTS
from machines.images.store import Image, find_image
from machines.records import RecordStore
from worker.gateway.guest_connection import ConnectionLimits
from worker.gateway.model_gateway import Gateway, GatewayLimits

GIB = 2**30
CPUS, MEMORY, DISK = 2, GIB, 7 * GIB
CANARY = "canary-41c02e77"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def image() -> Image:
    return find_image(Settings(), "agentic-dev")


@contextmanager
def home_of_machines(directory: Path) -> Iterator[Settings]:
    """Settings of a home that must have nothing running, no machine and no socket at the end; its machines boot."""
    settings = Settings(home=directory, image_dir=Settings().images, use_snapshots=False)
    host = MachineHost(settings)
    try:
        yield settings
    finally:
        for record in host.records():
            host.destroy(record.id)
    assert processes_of(directory) == []
    assert [path.name for path in settings.machines.iterdir()] == [".ledger.lock"]
    assert [path.name for path in settings.sockets.iterdir()] == []


def processes_of(directory: Path) -> list[psutil.Process]:
    # QEMU names the home in its arguments, the programs that it starts run in the home's socket directory.
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid():
                continue
            if str(directory) in " ".join(process.cmdline()) or Path(process.cwd()).is_relative_to(directory):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


def reserve(host: MachineHost, machine_id: str) -> str:
    deadline = datetime.now(UTC) + timedelta(hours=1)
    host.reserve(Reservation(machine_id, "task-x", "run-x", CPUS, MEMORY, DISK, deadline))
    return machine_id


class Running:
    """One machine for the tests that do not end it."""

    def __init__(self, settings: Settings, image: Image) -> None:
        self.settings = settings
        self.image = image
        self.lines: list[str] = []
        self.host = MachineHost(settings)
        self.id = reserve(self.host, "vm-00000000000000e1")
        self.record = self.host.ensure_running(self.id, image, self.lines.append)
        self.shell = self.host.connect(self.id)

    def said(self, command: str) -> str:
        return self.shell.run(command).stdout.decode().strip()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, image: Image) -> Iterator[Running]:
    with home_of_machines(tmp_path_factory.mktemp("one")) as settings:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("SOME_TOKEN", CANARY)
            running = Running(settings, image)
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Settings]:
    with home_of_machines(tmp_path) as settings:
        yield settings


def test_the_guest_has_what_was_asked_for(machine: Running) -> None:
    assert machine.record.state == "running"
    assert machine.said("nproc") == str(CPUS)
    assert 0.85 * MEMORY < int(machine.said("awk '/MemTotal/ {print $2 * 1024}' /proc/meminfo")) <= MEMORY
    until(lambda: 0.9 * DISK < int(machine.said("df --output=size -B1 / | tail -1")) <= DISK)
    assert machine.said("hostname") == machine.id
    assert abs(int(machine.said("date +%s")) - time.time()) < 5
    assert machine.said("cat /etc/machine-id") != ""


def test_the_acceleration_chosen_starts_a_kernel(machine: Running) -> None:
    assert machine.record.acceleration is not None
    assert seconds_to_start_kernel(machine.record.acceleration, machine.image.kernel) is not None
    assert sum("/dev/kvm" in line or "KVM" in line for line in machine.lines) <= 1


def test_progress_is_told(machine: Running) -> None:
    assert any("starting machine" in line for line in machine.lines)
    assert machine.lines[-1].startswith(f"machine {machine.id} is up after")


def test_no_secret_is_in_the_arguments(machine: Running) -> None:
    arguments = " ".join(psutil.Process(machine.record.pid).cmdline())
    keys = [path.read_text() for path in (machine.settings.machines / machine.id).glob("*_key")]
    assert len(keys) == 2
    for key in keys:
        assert not any(line in arguments for line in key.splitlines())


def test_the_process_has_no_privilege_and_no_secret(machine: Running) -> None:
    process = Path(f"/proc/{machine.record.pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "0" not in status["Uid"].split()
    assert set(status["Groups"].split()) <= {status["Gid"].split()[0]}
    assert CANARY not in (process / "environ").read_text()
    for path in machine.settings.sockets.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_guest_costs_the_host_no_process_for_a_connection_to_the_gateway(machine: Running) -> None:
    many, most = 100, 5
    limits = GatewayLimits(connections=ConnectionLimits(for_each_machine=most))

    def flood() -> tuple[str, int]:
        opened = f"for i in $(seq {many}); do exec {{f}}<>/dev/tcp/10.0.2.100/80; echo GET / HTTP/1.1 >&$f; done"
        held = shlex.quote(f"{opened}; touch /run/flooded; exec sleep 1000")
        machine.shell.run(f"setsid bash -c {held} </dev/null >/dev/null 2>&1 &")
        until(lambda: machine.said("ls /run/flooded || true"))
        asked = "exec 3<>/dev/tcp/10.0.2.100/80; echo -e 'GET / HTTP/1.0\\r\\n\\r' >&3; head -1 <&3"
        answer = machine.said(f"bash -c {shlex.quote(asked)}")
        return answer, len(processes_of(machine.settings.sockets))

    async def scenario() -> tuple[str, int]:
        gateway = Gateway(machine.settings, limits=limits)
        await gateway.start()
        try:
            return await asyncio.to_thread(flood)
        finally:
            await gateway.stop()

    answer, processes = asyncio.run(scenario())
    machine.shell.run("pkill -x sleep; rm /run/flooded", check=False)
    assert "200" in answer
    assert processes < many // 2


def test_commands_keep_their_output_and_exit_codes_apart(machine: Running) -> None:
    both = machine.shell.run("head -c 500000 /dev/zero; head -c 450000 /dev/zero >&2; exit 7", check=False)
    assert (both.exit_code, len(both.stdout), len(both.stderr)) == (7, 500_000, 450_000)
    with pytest.raises(GuestUnreachable, match="output is larger than the host takes"):
        machine.shell.run("cat /dev/zero")
    assert machine.shell.run("cat", input=b"in and out").stdout == b"in and out"
    with pytest.raises(MachineError, match="exit code 1: no such thing"):
        machine.shell.run("echo no such thing >&2; exit 1")
    with pytest.raises(GuestUnreachable, match=r"within 0\.5 s"):
        machine.shell.run("sleep 100", timeout=0.5)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: machine.said(f"echo {n}"), range(16))) == [str(n) for n in range(16)]


def test_a_file_is_written_whole_with_mode_and_owner(machine: Running) -> None:
    data = os.urandom(300_000)
    machine.shell.write("/run/made here/it's.bin", data, mode=0o640, owner="agent")
    digest, facts = machine.said('cd "/run/made here"; sha256sum <"it\'s.bin"; stat -c "%a %U" *').splitlines()
    assert digest.split()[0] == hashlib.sha256(data).hexdigest()
    assert facts == "640 agent"


def test_a_broken_connection_is_renewed(machine: Running) -> None:
    assert machine.said("echo before") == "before"
    channel = machine.shell.stream("sleep 1000")
    machine.shell.run("setsid sh -c 'sleep 0.1; pkill -o -f \"sshd: root\"' >/dev/null 2>&1 &")
    assert channel.recv_exit_status() == -1
    assert machine.said("echo after") == "after"


def test_a_guest_with_another_host_key_is_refused(machine: Running) -> None:
    path = machine.settings.machines / machine.id / KNOWN_HOSTS
    right = path.read_text()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path.with_name("other")], check=True)
    other = path.with_name("other.pub").read_text().split()
    try:
        path.write_text(f"{machine.id} {other[0]} {other[1]}\n")
        with pytest.raises(GuestUnreachable, match=r"[Hh]ost key"):
            MachineHost(machine.settings).connect(machine.id)
        path.write_text("")
        with pytest.raises(GuestUnreachable, match=r"known_hosts|not found"):
            MachineHost(machine.settings).connect(machine.id)
    finally:
        path.write_text(right)
        path.with_name("other").unlink()
        path.with_name("other.pub").unlink()


def test_a_person_enters_with_the_printed_command(machine: Running) -> None:
    command = machine.host.ssh_command(machine.id) + " 'whoami && sudo whoami'"
    entered = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert entered.stdout.split() == ["agent", "root"]


def _greet_handed(handed: socket.socket, server: socketserver.ThreadingTCPServer) -> None:
    while True:
        name, descriptors, _, _ = socket.recv_fds(handed, 64, 1)
        if not name:
            return
        server.process_request(socket.socket(fileno=descriptors[0]), name.decode())


class _Greeter(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"greeted " + self.rfile.readline())


def test_the_guest_reaches_the_gateway_and_nothing_else(machine: Running) -> None:
    handed = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    handed.bind(str(machine.settings.sockets / "guests.sock"))
    (machine.settings.sockets / "guests.sock").chmod(0o666)
    loopback = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Greeter)
    threading.Thread(target=loopback.serve_forever, daemon=True).start()
    threading.Thread(target=_greet_handed, args=(handed, loopback), daemon=True).start()
    port = loopback.server_address[1]

    def reach(address: str, port: int, limit: float = 60) -> str:
        script = f"exec 3<>/dev/tcp/{address}/{port} && echo $HOSTNAME >&3 && head -n 1 <&3"
        tried = machine.shell.run(f"timeout {limit:.0f} bash -c '{script}'", timeout=limit + 60, check=False)
        return tried.stdout.decode().strip()

    try:
        greeting = f"greeted {machine.id}"
        assert reach("10.0.2.100", 80) == greeting
        begun = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: reach("10.0.2.100", 80), range(4))) == [greeting] * 4
        # What is closed had twice the time that these four together took.
        limit = 4 + 2 * (time.monotonic() - begun)
        closed = [("10.0.2.2", port), ("10.0.2.2", 22), ("10.0.2.2", machine.record.ssh_port), ("10.0.2.100", 443)]
        closed += [("10.0.2.3", 53), ("10.0.2.100", port), ("10.0.2.101", 80), ("1.1.1.1", 443), ("192.168.0.1", 80)]
        # Root in the guest can do without what the guest itself refuses, or sends to the proxy.
        machine.said("systemctl stop taskyard-redirect; nft flush ruleset")
        with ThreadPoolExecutor(len(closed)) as pool:
            answers = list(pool.map(lambda target: reach(*target, limit), closed))
        assert answers == [""] * len(closed)
        resolver = "nameserver 10.0.2.3\\noptions timeout:1 attempts:1\\n"
        own = "cp /etc/resolv.conf /run/resolv.conf"
        looked_up = f"{own}; printf '{resolver}' >/etc/resolv.conf; getent hosts example.org"
        assert machine.said(f"{looked_up}; cp /run/resolv.conf /etc/resolv.conf") == ""
    finally:
        machine.said("systemctl start taskyard-redirect")
        loopback.shutdown()
        loopback.server_close()
        handed.shutdown(socket.SHUT_RDWR)
        handed.close()
        (machine.settings.sockets / "guests.sock").unlink()


def test_a_second_call_and_a_second_host_find_the_same_machine(machine: Running) -> None:
    assert machine.host.ensure_running(machine.id, machine.image, machine.lines.append) == machine.record
    later = MachineHost(machine.settings)
    assert later.ensure_running(machine.id, machine.image, machine.lines.append) == machine.record
    assert later.connect(machine.id).run("hostname").stdout.decode().strip() == machine.id
    assert later.reserve(Reservation(machine.id, "", "", 1, 1, 1, datetime.now(UTC))) == machine.record
    assert later.sweep() == []
    assert later.is_alive(machine.id)


def test_a_caller_killed_before_it_noted_the_guests_answer_is_continued(machine: Running) -> None:
    store = RecordStore(machine.settings)
    store.write(machine.record.model_copy(update={"state": "starting", "boot_seconds": None, "booted_once": False}))
    record = MachineHost(machine.settings).ensure_running(machine.id, machine.image, machine.lines.append)
    assert (record.state, record.pid, record.ssh_port) == ("running", machine.record.pid, machine.record.ssh_port)
    assert record.booted_once
    store.write(machine.record)


def test_a_guest_that_hangs_is_unreachable_and_not_lost(machine: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "_CONNECT_SECONDS", 2.0)
    monitor = machine.settings.sockets / f"{machine.id}.qmp"
    qmp.execute(monitor, "stop")
    try:
        for _ in range(2):
            with pytest.raises(GuestUnreachable):
                machine.shell.run("true")
        assert machine.host.is_alive(machine.id)
    finally:
        qmp.execute(monitor, "cont")
        monkeypatch.undo()
    assert machine.said("echo again") == "again"


def test_the_workspace_is_attached_once_and_read_from_the_host(machine: Running, tmp_path: Path) -> None:
    tree, disk = tmp_path / "tree", tmp_path / "disk"
    tree.mkdir()
    (tree / "README").write_text("from the host\n")
    build_workspace(tree, disk, GIB)
    machine.host.attach_workspace(machine.id, disk)
    MachineHost(machine.settings).attach_workspace(machine.id, disk)
    assert not disk.exists()
    assert machine.said("cat /workspace/README; stat -c '%U %u' /workspace; ls -A /workspace") == (
        "from the host\nagent 1000\nREADME"
    )
    assert machine.said("cat /sys/block/*/serial | grep -c workspace") == "1"
    machine.shell.run("su agent -c 'echo from the guest >/workspace/answer'; sync; fsfreeze -f /workspace")
    read = subprocess.run(
        ["debugfs", "-R", "cat /answer", machine.host.workspace(machine.id)],
        capture_output=True, text=True, check=True, env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )  # fmt: skip
    machine.shell.run("fsfreeze -u /workspace")
    assert read.stdout == "from the guest\n"


def test_a_caller_killed_while_the_guest_boots_is_continued(home: Settings, image: Image) -> None:
    host = MachineHost(home)
    machine_id = reserve(host, "vm-00000000000000e2")
    script = (
        "import sys; from foundation.settings import Settings; from machines.host import MachineHost\n"
        "from machines.images.store import find_image\n"
        "MachineHost(Settings()).ensure_running(sys.argv[1], find_image(Settings(), 'agentic-dev'), print)"
    )
    places = {"TASKYARD_HOME": str(home.home), "TASKYARD_IMAGE_DIR": str(home.images)}
    environment = {**os.environ, **places, "TASKYARD_USE_SNAPSHOTS": "false"}
    caller = subprocess.Popen([sys.executable, "-c", script, machine_id], env=environment, stdout=subprocess.DEVNULL)
    until(lambda: host.record(machine_id).ssh_port)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    half_made = host.record(machine_id)
    assert half_made.state == "starting"
    assert half_made.boot_seconds is None
    assert host.is_alive(machine_id)

    record = host.ensure_running(machine_id, image, lambda _: None)
    assert (record.state, record.pid) == ("running", half_made.pid)
    shell = host.connect(machine_id)
    shell.run("echo kept >/root/kept; sync")

    host.kill(machine_id)
    assert not host.is_alive(machine_id)
    for lost in (lambda: shell.run("true"), lambda: host.connect(machine_id), lambda: host.ssh_command(machine_id)):
        with pytest.raises(MachineLost):
            lost()

    again = host.ensure_running(machine_id, image, lambda _: None)
    assert again.pid != half_made.pid
    assert host.connect(machine_id).run("cat /root/kept").stdout == b"kept\n"

    host.destroy(machine_id)
    host.destroy(machine_id)
    assert not home.machines.joinpath(machine_id).exists()
    assert processes_of(home.home) == []
    with pytest.raises(MachineNotFound):
        host.connect(machine_id)


def test_a_machine_is_destroyed_while_it_boots(home: Settings, image: Image) -> None:
    host = MachineHost(home)
    machine_id = reserve(host, "vm-00000000000000e3")
    with ThreadPoolExecutor(1) as pool:
        booting = pool.submit(host.ensure_running, machine_id, image, lambda _: None)
        until(lambda: host.record(machine_id).pid)
        begun = time.monotonic()
        MachineHost(home).destroy(machine_id)
        assert time.monotonic() - begun < 10
        with pytest.raises(MachineError):
            booting.result(timeout=30)
    assert host.records() == []
