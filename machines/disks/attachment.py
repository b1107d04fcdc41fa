"""A workspace disk made a machine's own: moved to the machine's place, plugged in, and mounted by its guest."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

from foundation.child_environment import child_environment
from foundation.errors import MachineError
from guest.programs import perl_command
from machines.hypervisor import qemu
from machines.hypervisor.qmp import Monitor
from machines.paths import MachinePaths
from machines.ssh import GuestShell

# The guest waits for the disk to appear, for up to 20 s of its own time.
_MOUNT_SECONDS = 120


def attach_workspace(paths: MachinePaths, shell: GuestShell, image: Path) -> None:
    """Give the running machine the disk image and have it mounted; every part of it may have been done before.

    The caller holds the machine's lock. Raises MachineError when there is no such image or the guest fails.
    """
    with Monitor(paths.qmp) as monitor:
        if not qemu.has_workspace(monitor):
            _take_over(image, paths.workspace)
            qemu.attach_workspace(monitor, paths)
    shell.run(perl_command("mount-workspace"), timeout=_MOUNT_SECONDS)


def _take_over(image: Path, target: Path) -> None:
    """Move the image to the machine's own place; what an interrupted earlier caller has moved is there already."""
    try:
        image.replace(target)
    except FileNotFoundError:
        if not target.exists():
            raise MachineError(f"The workspace image {image} does not exist; stage the repository again") from None
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        draft = target.with_name(f".{target.name}.draft")
        copy = ["cp", "--sparse=always", "--", str(image), str(draft)]
        subprocess.run(copy, env=child_environment(), check=True, capture_output=True)
        draft.replace(target)
        image.unlink()
