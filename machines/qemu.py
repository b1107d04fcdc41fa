"""The QEMU process of a machine: its arguments, its start, how it is recognised, and its end."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from foundation.errors import HostNotReady, MachineError
from foundation.settings import Settings
from machines import qmp
from machines.acceleration import QEMU
from machines.identity import PORT_NAME
from machines.image import Image
from machines.records import MACHINE_ID, MachineRecord

OVERLAY = "root.qcow2"
WORKSPACE = "workspace.raw"
CONSOLE = "console.log"
OUTPUT = "qemu.log"
PID_FILE = "qemu.pid"

GUEST_ADDRESS = "10.0.2.15"
GATEWAY_ADDRESS = "10.0.2.100"
_SOCKET_NAME = re.compile(rf"({MACHINE_ID.pattern})\.(?:qmp|identity)")
_FORWARDED = re.compile(rf"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+{re.escape(GUEST_ADDRESS)}\s+22\b")
_QUIT_SECONDS, _TERM_SECONDS, _KILL_SECONDS = 3.0, 3.0, 20.0
_EXEC_POLL_SECONDS = 0.001
_TAIL_BYTES = 3000

# Those this process started: asked about now and then, so that none stays a zombie.
_children: list[subprocess.Popen[bytes]] = []
_children_lock = threading.Lock()


@dataclass(frozen=True)
class MachinePaths:
    """Where the files and sockets of one machine are."""

    directory: Path
    sockets: Path
    machine_id: str

    @property
    def overlay(self) -> Path:
        return self.directory / OVERLAY

    @property
    def workspace(self) -> Path:
        return self.directory / WORKSPACE

    @property
    def console(self) -> Path:
        return self.directory / CONSOLE

    @property
    def output(self) -> Path:
        return self.directory / OUTPUT

    @property
    def pid_file(self) -> Path:
        return self.directory / PID_FILE

    @property
    def qmp(self) -> Path:
        return self.sockets / f"{self.machine_id}.qmp"

    @property
    def identity(self) -> Path:
        return self.sockets / f"{self.machine_id}.identity"


def machine_paths(settings: Settings, machine_id: str) -> MachinePaths:
    """The paths of a machine of this home."""
    # Resolved: the paths are arguments of a QEMU that runs elsewhere, and must be the same for every caller.
    return MachinePaths(settings.machines.resolve() / machine_id, settings.sockets.absolute(), machine_id)


def socket_owner(name: str) -> str | None:
    """The machine id in a socket's file name; None for a socket that is no machine's."""
    match = _SOCKET_NAME.fullmatch(name)
    return match[1] if match else None


def make_overlay(paths: MachinePaths, image: Image, size_bytes: int) -> None:
    """Make the machine's root disk anew: thin, over the image's read-only base, at least as large as it."""
    paths.overlay.unlink(missing_ok=True)
    draft = paths.directory / f".{OVERLAY}.draft"
    size = str(max(size_bytes, image.virtual_size))
    command = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        str(image.base.resolve()),
        str(draft),
        size,
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if made.returncode != 0:
        raise MachineError(f"The machine's root disk could not be made: {made.stderr.strip()}")
    draft.replace(paths.overlay)


def qemu_arguments(paths: MachinePaths, record: MachineRecord, image: Image, acceleration: str) -> list[str]:
    """QEMU's whole command line. Sockets are named relative to the socket directory, which QEMU runs in."""
    cpu, accel = ("host", "kvm") if acceleration == "kvm" else ("max", "tcg,thread=multi")
    # The root disk never outlives a crash of the host, so its flushes need not reach the platter.
    root = {
        "driver": "qcow2",
        "node-name": "root",
        "discard": "unmap",
        "cache": {"no-flush": True},
        "file": {"driver": "file", "filename": str(paths.overlay)},
    }
    # QEMU starts socat in the socket directory, so no path needs quoting. What socat says of a gateway that is not
    # there would go into the guest's connection as if it were an answer.
    gateway = f"guestfwd=tcp:{GATEWAY_ADDRESS}:80-cmd:socat -lf/dev/null - UNIX-CONNECT:gateway.sock"
    network = f"user,id=network,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22,{gateway}"
    return [
        QEMU,
        *("-name", record.id, "-pidfile", str(paths.pid_file)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        # guestfwd starts a socat in a session of its own for each connection to the gateway: so spawning must stay
        # allowed, and with it setsid, which is filtered as elevating. Nothing gains a privilege by that: a process
        # under this filter runs with no_new_privs, and so do its children.
        *("-sandbox", "on,obsolete=deny,spawn=allow,elevateprivileges=allow,resourcecontrol=deny"),
        *("-machine", "q35,vmport=off,i8042=off", "-accel", accel, "-cpu", cpu),
        *("-smp", str(record.cpus), "-m", f"{record.memory_bytes // 2**20}M"),
        # A guest that reboots would wait for an identity that nobody sends: its reboot is its end.
        "-no-reboot",
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.command_line),
        *("-chardev", f"file,id=console,path={_option(paths.console)},append=on", "-serial", "chardev:console"),
        *("-blockdev", json.dumps(root), "-device", "virtio-blk-pci,drive=root,serial=root"),
        *("-netdev", network, "-device", "virtio-net-pci,netdev=network,romfile="),
        *("-chardev", f"socket,id=identity,path={paths.identity.name},server=on,wait=off"),
        *("-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=identity,name={PORT_NAME}"),
        *("-device", "virtio-rng-pci"),
        *("-device", "pcie-root-port,id=workspace-slot,chassis=1"),
        *("-chardev", f"socket,id=qmp,path={paths.qmp.name},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
    ]


def start(paths: MachinePaths, arguments: list[str]) -> int:
    """Start QEMU in a session of its own, so that it outlives the caller, and give its process id.

    Raises HostNotReady when a program is missing.
    """
    for program in (QEMU, "socat"):
        if shutil.which(program) is None:
            raise HostNotReady(f"{program} is not installed; `sandbox doctor` says which packages are missing")
    make_socket_directory(paths.sockets)
    for stale in (paths.qmp, paths.identity):
        stale.unlink(missing_ok=True)
    with paths.output.open("wb") as output:
        child = subprocess.Popen(
            arguments,
            cwd=paths.sockets,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # For a moment after exec the kernel shows no arguments, by which the process is recognised.
    while child.poll() is None and not Path(f"/proc/{child.pid}/cmdline").read_bytes():
        time.sleep(_EXEC_POLL_SECONDS)
    with _children_lock:
        _children.append(child)
    return child.pid


def make_socket_directory(directory: Path) -> None:
    """Make the socket directory, for this user alone. Raises HostNotReady when another user's is in its place."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise HostNotReady(f"{directory} belongs to somebody else; remove it or set TASKYARD_HOME to a shorter path")


def find_process(
    paths: MachinePaths, pid: int | None = None, process_start: int | None = None
) -> psutil.Process | None:
    """The machine's QEMU, if it runs: known by its arguments, looked for at ``pid`` first."""
    with _children_lock:
        _children[:] = [child for child in _children if child.poll() is None]
    if pid is not None:
        try:
            process = psutil.Process(pid)
            if start_ticks(pid) == process_start and _owner_of(process, paths.directory.parent) == paths.machine_id:
                return process
        except (psutil.NoSuchProcess, OSError):
            pass
    return processes_of(paths.directory.parent).get(paths.machine_id)


def processes_of(machines: Path) -> dict[str, psutil.Process]:
    """Every running QEMU whose machine is below ``machines``, by machine id."""
    found = {}
    for process in psutil.process_iter():
        try:
            machine_id = _owner_of(process, machines)
        except psutil.NoSuchProcess:
            continue
        if machine_id is not None:
            found[machine_id] = process
    return found


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the host's boot: unlike a time of day, no clock change moves it."""
    content = Path(f"/proc/{pid}/stat").read_text()
    return int(content.rpartition(")")[2].split()[19])


def forwarded_port(paths: MachinePaths) -> int:
    """The loopback port that QEMU chose for the guest's SSH."""
    shown = qmp.execute(paths.qmp, "human-monitor-command", {"command-line": "info usernet"})
    match = _FORWARDED.search(str(shown))
    if match is None:
        raise MachineError("QEMU does not say which port it forwards to the guest's SSH")
    return int(match[1])


def guest_is_listening(paths: MachinePaths) -> bool:
    """True while the guest has its end of the identity port open."""
    ports: list[dict[str, Any]] = qmp.execute(paths.qmp, "query-chardev")
    return any(port["label"] == "identity" and port["frontend-open"] for port in ports)


def has_workspace(paths: MachinePaths) -> bool:
    """True when the workspace disk is plugged into the running machine."""
    devices: list[dict[str, Any]] = qmp.execute(paths.qmp, "qom-list", {"path": "/machine/peripheral"})
    return any(device["name"] == "workspace" for device in devices)


def attach_workspace(paths: MachinePaths) -> None:
    """Plug the workspace disk into the running machine, which does not have it yet."""
    nodes: list[dict[str, Any]] = qmp.execute(paths.qmp, "query-named-block-nodes", {"flat": True})
    if not any(node.get("node-name") == "workspace" for node in nodes):
        # Through the host's page cache, which every reader on the host shares: what the guest has synced is there.
        file = {"driver": "file", "filename": str(paths.workspace)}
        node = {"driver": "raw", "node-name": "workspace", "discard": "unmap", "file": file}
        qmp.execute(paths.qmp, "blockdev-add", node)
    device = {"driver": "virtio-blk-pci", "id": "workspace", "drive": "workspace", "serial": "workspace"}
    qmp.execute(paths.qmp, "device_add", {**device, "bus": "workspace-slot"})


def stop(paths: MachinePaths, process: psutil.Process) -> None:
    """End the machine's QEMU and wait for its end: by QMP, then TERM, then KILL. Raises MachineError if it stays."""
    try:
        qmp.execute(paths.qmp, "quit", limit=2)
    except MachineError:
        pass  # QEMU hangs up before it answers, or does not answer at all
    else:
        if _ended(process, _QUIT_SECONDS):
            return
    for signal, patience in ((process.terminate, _TERM_SECONDS), (process.kill, _KILL_SECONDS)):
        try:
            signal()
        except psutil.NoSuchProcess:
            return
        if _ended(process, patience):
            return
    raise MachineError(
        f"QEMU process {process.pid} of machine {paths.machine_id} does not end; it may hang in disk I/O"
    )


def tail(path: Path) -> str:
    """The end of a log file as text; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def _ended(process: psutil.Process, patience: float) -> bool:
    try:
        process.wait(patience)
    except psutil.TimeoutExpired:
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def _owner_of(process: psutil.Process, machines: Path) -> str | None:
    """The machine that a process is the QEMU of; None for any other process, and for one that has ended.

    The name alone could be another home's: the pid file's path says which home the machine is of.
    """
    try:
        arguments = process.cmdline()  # empty for a process that has ended and is not reaped yet
    except psutil.AccessDenied:
        return None
    pairs = list(itertools.pairwise(arguments))
    for option, value in pairs:
        if option == "-name" and MACHINE_ID.fullmatch(value):
            mine = ("-pidfile", str(machines / value / PID_FILE)) in pairs
            return value if mine and Path(arguments[0]).name == QEMU else None
    return None


def _option(path: Path) -> str:
    return str(path).replace(",", ",,")
