"""The command `sandbox clean`: ends this host's machines and removes all that Taskyard keeps in its home."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from foundation.errors import Conflict

if TYPE_CHECKING:
    from foundation.settings import Settings

# Everything that Taskyard itself puts into its home. Other files there, such as secrets/, are the user's.
_OWN = (
    "images", "snapshots", "machines", "mirrors", "staging", "gateway", "logs", "temporal", "bucket", "run",
    "credentials.json", "access.key", "tokens.pem", "acceleration.json", "stack.lock",
)  # fmt: skip


def clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove all that Taskyard keeps on this host: machines, runs, logs, artifacts of the embedded bucket, images.

    Refuses while a stack runs.
    """
    from cli.stack.up import stack_holder
    from foundation.settings import Settings

    settings = Settings()
    holder = stack_holder(settings)
    if holder is not None:
        raise Conflict(
            f"A stack runs on {settings.home} (process {holder.pid}, {holder.command}). Stop it first, with Ctrl-C in "
            f"its terminal or 'kill {holder.pid}'."
        )
    if not settings.home.exists() and not settings.images.exists():
        typer.echo(f"Nothing to remove: {settings.home} does not exist.")
        return
    if not yes:
        typer.confirm(f"Remove all machines, runs, artifacts and images in {settings.home}?", abort=True)
    for line in _end_machines(settings):
        typer.echo(line)
    for line in _remove_files(settings):
        typer.echo(line)


def _end_machines(settings: Settings) -> list[str]:
    from machines.host import MachineHost

    host = MachineHost(settings)
    ended = []
    for record in host.records():
        host.destroy(record.id)
        ended.append(f"Ended machine {record.id}.")
    host.sweep()
    return ended


def _remove_files(settings: Settings) -> list[str]:
    from machines.images.store import list_images, remove_image

    lines = []
    home = settings.home
    if not settings.images.is_relative_to(home):
        for image in list_images(settings):
            remove_image(settings, image.digest)
            lines.append(f"Removed image {image.digest[:12]} of {settings.images}.")
    if not settings.sockets.is_relative_to(home):
        shutil.rmtree(settings.sockets, ignore_errors=True)
    for name in _OWN:
        path = home / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    left = sorted(path.name for path in home.iterdir()) if home.exists() else []
    if left:
        lines.append(f"Emptied {home}; left there, because Taskyard did not make it: {', '.join(left)}.")
    elif home.exists():
        home.rmdir()
        lines.append(f"Removed {home}.")
    return lines
