"""The QEMU process of a machine: its arguments, its start, how it is recognised, and its end."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from foundation.child_environment import child_environment
from foundation.errors import HostNotReady, MachineError
from foundation.machine_ids import MACHINE_ID
from machines.hypervisor import qmp
from machines.hypervisor.acceleration import QEMU
from machines.hypervisor.handover import PERL
from machines.hypervisor.hardware import workspace_disk
from machines.hypervisor.qmp import Monitor
from machines.hypervisor.unprivileged import limit_processes, without_privileges
from machines.images.store import Image
from machines.network import ssh_port
from machines.paths import OVERLAY, PID_FILE, PROCESS_NAME, MachinePaths

_QUIT_SECONDS, _TERM_SECONDS, _KILL_SECONDS = 3.0, 3.0, 20.0
_EXEC_POLL_SECONDS = 0.001
_TAIL_BYTES = 3000
_WORKSPACE_SET = 1

# Those this process started: asked about now and then, so that none stays a zombie.
_children: list[subprocess.Popen[bytes]] = []
_children_lock = threading.Lock()


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
    made = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False, timeout=60)
    if made.returncode != 0:
        raise MachineError(f"The machine's root disk could not be made: {made.stderr.strip()}")
    draft.replace(paths.overlay)


def start(paths: MachinePaths, arguments: list[str]) -> int:
    """Start QEMU in a session of its own, so that it outlives the caller, and give its process id.

    Raises HostNotReady when a program is missing.
    """
    child = _spawn(paths, [*without_privileges(), *arguments])
    limit_processes(child.pid, paths.machine_id)
    # Until it has given up its privileges it is another program, and for a moment after exec the kernel shows no
    # arguments, by which the process is recognised.
    name = os.fsencode(arguments[0])
    while child.poll() is None and not Path(f"/proc/{child.pid}/cmdline").read_bytes().startswith(name + b"\0"):
        time.sleep(_EXEC_POLL_SECONDS)
    with _children_lock:
        _children.append(child)
    return child.pid


def start_child(paths: MachinePaths, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a QEMU that ends with the calling thread, however that ends. Raises HostNotReady."""
    return _spawn(paths, [*without_privileges("--pdeathsig", "KILL"), *arguments])


def _spawn(paths: MachinePaths, command: list[str]) -> subprocess.Popen[bytes]:
    for program in (QEMU, PERL, command[0]):
        if shutil.which(program) is None:
            raise HostNotReady(f"{program} is not installed; `sandbox doctor` says which packages are missing")
    make_socket_directory(paths.sockets)
    for stale in (paths.qmp, paths.identity, paths.process_name):
        stale.unlink(missing_ok=True)
    with paths.output.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=paths.sockets,
            env=child_environment(LC_ALL="C"),
            umask=0o177,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def make_socket_directory(directory: Path) -> None:
    """Make the socket directory, for this user alone. Raises HostNotReady when another user's is in its place.

    Machines of root run as users of their own, who may open by name there what is for them.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise HostNotReady(f"{directory} belongs to somebody else; remove it or set TASKYARD_HOME to a shorter path")
    wanted = 0o711 if os.geteuid() == 0 else 0o700
    if stat.S_IMODE(found.st_mode) != wanted:
        directory.chmod(wanted)


def find_process(
    paths: MachinePaths, pid: int | None = None, process_start: int | None = None
) -> psutil.Process | None:
    """The machine's QEMU, if it runs: known by its arguments, looked for at ``pid`` first."""
    with _children_lock:
        _children[:] = [child for child in _children if child.poll() is None]
    if pid is not None:
        try:
            process = psutil.Process(pid)
            if start_ticks(pid) == process_start and _name_of(process, paths.directory.parent) == _started_as(paths):
                return process
        except (psutil.NoSuchProcess, OSError):
            pass
    return processes_of(paths.directory.parent).get(paths.machine_id)


def processes_of(machines: Path) -> dict[str, psutil.Process]:
    """Every running QEMU whose machine is below ``machines``, by machine id."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            name = _name_of(process, machines)
        except psutil.NoSuchProcess:
            continue
        if name is not None:
            found[name] = process
    # Looked up after the processes: one that is handed over meanwhile is found under either name, and never under none.
    for path in machines.glob(f"*/{PROCESS_NAME}"):
        with suppress(OSError):
            name = path.read_text()
            if name in found:
                found[path.parent.name] = found.pop(name)
    return found


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the host's boot: unlike a time of day, no clock change moves it."""
    content = Path(f"/proc/{pid}/stat").read_text()
    return int(content.rpartition(")")[2].split()[19])


def forwarded_port(monitor: Monitor) -> int:
    """The loopback port that QEMU chose for the guest's SSH."""
    answer = monitor.execute("human-monitor-command", {"command-line": "info usernet"})
    port = ssh_port(str(answer))
    if port is None:
        raise MachineError("QEMU does not say which port it forwards to the guest's SSH")
    return port


def guest_is_listening(monitor: Monitor) -> bool:
    """True while the guest has its end of the identity port open."""
    ports: list[dict[str, Any]] = monitor.execute("query-chardev")
    return any(port["label"] == "identity" and port["frontend-open"] for port in ports)


def grow_root(monitor: Monitor, size_bytes: int) -> None:
    """Make the running machine's root disk that large; its guest sees it. Does nothing when it is no smaller."""
    nodes: list[dict[str, Any]] = monitor.execute("query-named-block-nodes", {"flat": True})
    size = next(node["image"]["virtual-size"] for node in nodes if node.get("node-name") == "root")
    if size < size_bytes:
        monitor.execute("block_resize", {"node-name": "root", "size": size_bytes})


def has_workspace(monitor: Monitor) -> bool:
    """True when the workspace disk is plugged into the machine."""
    devices: list[dict[str, Any]] = monitor.execute("qom-list", {"path": "/machine/peripheral"})
    return any(device["name"] == "workspace" for device in devices)


def attach_workspace(monitor: Monitor, paths: MachinePaths) -> None:
    """Plug the workspace disk into the running machine, which does not have it yet."""
    node, device = workspace_disk(f"/dev/fdset/{_WORKSPACE_SET}")
    nodes: list[dict[str, Any]] = monitor.execute("query-named-block-nodes", {"flat": True})
    if not any(known.get("node-name") == "workspace" for known in nodes):
        # QEMU runs as another user by now, whom the file is not open to.
        with paths.workspace.open("r+b") as file:
            monitor.lend(_WORKSPACE_SET, file)
        monitor.execute("blockdev-add", node)
    monitor.execute("device_add", device)


def stop(paths: MachinePaths, process: psutil.Process) -> None:
    """End the machine's QEMU and wait for its end: by QMP, then TERM, then KILL. Raises MachineError if it stays."""
    try:
        qmp.execute(paths.qmp, "quit", limit=2)
    except MachineError:
        pass  # QEMU hangs up before it answers, or does not answer at all
    else:
        if _ended(process, _QUIT_SECONDS):
            return
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        if not _ended(process, _TERM_SECONDS):
            kill(paths, process)


def kill(paths: MachinePaths, process: psutil.Process) -> None:
    """End the machine's QEMU at once; its disks are of no use then. Raises MachineError if it stays."""
    with suppress(psutil.NoSuchProcess):
        process.kill()
        if not _ended(process, _KILL_SECONDS):
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


def _started_as(paths: MachinePaths) -> str:
    """The name that the machine's process has in its arguments."""
    try:
        return paths.process_name.read_text()
    except FileNotFoundError:
        return paths.machine_id


def _name_of(process: psutil.Process, machines: Path) -> str | None:
    """The machine that a process was started for as its QEMU; None for any other process, and for one that has ended.

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
