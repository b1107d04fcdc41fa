"""The hardware of a machine as QEMU's command line: the same however its guest comes to run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from guest.contract import IDENTITY_PORT, WORKSPACE_SERIAL
from machines.hypervisor.acceleration import QEMU
from machines.hypervisor.unprivileged import machine_user
from machines.network import backend
from machines.paths import MachinePaths
from machines.shape import NEAR_BYTES, Shape

# What an emulating QEMU keeps of translated code, at most; the ledger counts it. QEMU's own choice is an eighth of the
# host's memory, up to 1 GiB, for each machine.
TRANSLATION_BYTES = 512 * 2**20

# Everything that is emulated, but not the promise that bytes are copied quickly one by one (ERMS): kernel and library
# would then have 'rep movsb' copy and clear memory, of which each byte is an instruction here.
_EMULATED_CPU = "max,-erms"


@dataclass(frozen=True)
class Start:
    """How a QEMU starts. A guest that is to go on where another stood waits for that one's state.

    ``memory`` is a file of the guest's memory: a template writes it (``template``), others read it, and keep to
    themselves what they change. ``workspace`` has the workspace disk plugged in from the start.
    """

    memory: Path | None = None
    template: bool = False
    incoming: bool = False
    workspace: bool = False


BOOT = Start()


def qemu_arguments(paths: MachinePaths, shape: Shape, start: Start = BOOT) -> list[str]:
    """QEMU's whole command line. Sockets are named relative to the socket directory, which QEMU runs in."""
    emulated = f"tcg,thread=multi,tb-size={TRANSLATION_BYTES // 2**20}"
    cpu, accel = ("host", "kvm") if shape.acceleration == "kvm" else (_EMULATED_CPU, emulated)
    # The root disk of a running machine never outlives a crash of the host: its flushes need not reach the platter.
    root = {
        "driver": "qcow2",
        "node-name": "root",
        "discard": "unmap",
        "cache": {"no-flush": True},
        "file": {"driver": "file", "filename": str(paths.overlay)},
    }
    user = None if start.template else machine_user(paths.machine_id)
    network = ",".join(["user", "id=network", *(_quoted(part) for part in backend(paths.machine_id))])
    return [
        QEMU,
        *("-name", paths.machine_id, "-pidfile", str(paths.pid_file)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        # guestfwd starts a program in a session of its own for each connection to the gateway: so spawning must stay
        # allowed (a guestfwd to a socket takes one connection at a time), and with it setsid, which is filtered as
        # elevating, as is the change to another user. Nothing gains a privilege by that: QEMU is started with
        # no_new_privs and without capabilities that would outlive the change of user.
        *("-sandbox", "on,obsolete=deny,spawn=allow,elevateprivileges=allow,resourcecontrol=deny"),
        *_memory(shape, start),
        *("-accel", accel, "-cpu", cpu, "-smp", str(shape.cpus), "-m", _mebibytes(shape.memory_bytes)),
        # From when all is open that QEMU is given as a path; a template's guest runs nobody's code.
        *(("-runas", f"{user}:{user}") if user is not None else ()),
        # A guest that reboots would wait for an identity that nobody sends: its reboot is its end.
        "-no-reboot",
        *("-kernel", str(shape.image.kernel), "-initrd", str(shape.image.initrd), "-append", _command_line(shape)),
        *("-chardev", f"file,id=console,path={_option(paths.console)},append=on", "-serial", "chardev:console"),
        *("-blockdev", json.dumps(root), "-device", "virtio-blk-pci,drive=root,serial=root"),
        # No switch has to learn that a restored guest is here now, which would cost the guest five packets.
        *("-netdev", network, "-device", "virtio-net-pci,netdev=network,romfile=,guest_announce=off"),
        *("-chardev", f"socket,id=identity,path={paths.identity.name},server=on,wait=off"),
        *("-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=identity,name={IDENTITY_PORT}"),
        *("-device", "virtio-rng-pci"),
        *("-device", "pcie-root-port,id=workspace-slot,chassis=1"),
        *_workspace(paths, start),
        *("-chardev", f"socket,id=qmp,path={paths.qmp.name},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *(("-incoming", "defer") if start.incoming else ()),
    ]


def _memory(shape: Shape, start: Start) -> list[str]:
    """The guest's memory. Whatever holds it, its parts have their names, by which a state finds them again.

    A guest takes the far part when the near one is used up: only the near one is in a snapshot's file. Holes of a file
    are memory of the host from when they are first looked at, and a pause looks at all: of a machine of 2 GiB that took
    seconds. What is in no file has no pages until it is written, and large ones then.
    """
    machine = "q35,vmport=off,i8042=off"
    if not shape.far_memory:
        return ["-object", _part("memory", shape.memory_bytes, start), "-machine", f"{machine},memory-backend=memory"]
    return [
        *("-object", _part("memory", NEAR_BYTES, start)),
        *("-object", _part("far", shape.memory_bytes - NEAR_BYTES, BOOT)),
        *("-machine", machine, "-numa", f"node,nodeid=0,cpus=0-{shape.cpus - 1},memdev=memory"),
        *("-numa", "node,nodeid=1,memdev=far"),
    ]


def _part(name: str, size: int, start: Start) -> str:
    if start.memory is None:
        return f"memory-backend-ram,id={name},size={_mebibytes(size)}"
    share = "on" if start.template else "off"
    return f"memory-backend-file,id={name},size={_mebibytes(size)},mem-path={_option(start.memory)},share={share}"


def _mebibytes(size: int) -> str:
    return f"{size // 2**20}M"


def _command_line(shape: Shape) -> str:
    """The kernel's, which is not to look for what would better be nearer: both parts are."""
    return f"{shape.image.command_line} numa_balancing=disable" if shape.far_memory else shape.image.command_line


def workspace_disk(place: str) -> tuple[dict[str, object], dict[str, object]]:
    """The workspace disk at a path that QEMU may open, for ``blockdev-add`` and ``device_add`` or the command line."""
    # Through the host's page cache, which every reader on the host shares: what the guest has synced is there.
    file = {"driver": "file", "filename": place}
    node: dict[str, object] = {"driver": "raw", "node-name": "workspace", "discard": "unmap", "file": file}
    device: dict[str, object] = {
        "driver": "virtio-blk-pci",
        "id": "workspace",
        "drive": "workspace",
        "serial": WORKSPACE_SERIAL,
    }
    return node, {**device, "bus": "workspace-slot"}


def _workspace(paths: MachinePaths, start: Start) -> tuple[str, ...]:
    if not start.workspace:
        return ()
    node, device = workspace_disk(str(paths.workspace))
    return "-blockdev", json.dumps(node), "-device", json.dumps(device)


def _option(path: Path) -> str:
    return _quoted(str(path))


def _quoted(value: str) -> str:
    return value.replace(",", ",,")
