"""The commands `sandbox image`: build, list and remove guest images."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from cli.config import Format

app = typer.Typer(help="Build and list guest images.", no_args_is_help=True)

_WIDTH = 200


@app.command("build")
def build(
    profile: Annotated[str, typer.Option(help="Image profile: agentic-dev or basic.")] = "agentic-dev",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again although the image is there.")] = False,
) -> None:
    """Build the guest image of a profile, unless the image of the same inputs is there already."""
    from foundation.settings import Settings
    from foundation.units import format_size
    from machines.image import build_image

    with _progress(f"Building the guest image '{profile}'") as report:
        image = build_image(Settings(), profile, report, rebuild=rebuild)
    typer.echo(f"{image.profile} {image.digest[:12]}, {format_size(image.size_bytes)}, in {image.directory}")


@app.command("list")
def list_images(
    output: Annotated[Format, typer.Option("--format", help="How to print: text or json.")] = Format.TEXT,
) -> None:
    """List the images on this host with their snapshots, newest first; a star marks those that new machines use."""
    from foundation.settings import Settings
    from foundation.units import format_seconds, format_size
    from machines.image import current_digests
    from machines.image import list_images as find_all
    from machines.snapshot import list_snapshots

    images = find_all(Settings())
    current = current_digests()
    snapshots = list_snapshots(Settings())
    if output is Format.JSON:
        rows = [
            {
                "profile": image.profile,
                "digest": image.digest,
                "current": image.digest in current,
                "size_bytes": image.size_bytes,
                "built_at": image.built_at.isoformat(),
                "build_seconds": image.build_seconds,
                "directory": str(image.directory),
                "versions": image.versions,
                "snapshots": [
                    {
                        "key": snapshot.key,
                        "cpus": snapshot.cpus,
                        "memory_bytes": snapshot.memory_bytes,
                        "acceleration": snapshot.acceleration,
                        "size_bytes": snapshot.bytes,
                        "made_at": snapshot.made_at.isoformat(),
                        "used_at": snapshot.used_at.isoformat(),
                    }
                    for snapshot in snapshots
                    if snapshot.image_digest == image.digest
                ],
            }
            for image in images
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    if not images:
        typer.echo("No images on this host; build one with: sandbox image build")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "PROFILE", "DIGEST", "", "SIZE", "BUILT", "TOOK", "CLAUDE CODE", "SNAPSHOTS", box=None, pad_edge=False
    )
    for image in images:
        table.add_row(
            image.profile,
            image.digest[:12],
            "*" if image.digest in current else "",
            format_size(image.size_bytes),
            image.built_at.astimezone().strftime("%Y-%m-%d %H:%M"),
            format_seconds(image.build_seconds),
            image.versions.get("claude-code", ""),
            ", ".join(
                f"{snapshot.cpus} CPUs {format_size(snapshot.memory_bytes)}: {format_size(snapshot.bytes)}"
                for snapshot in snapshots
                if snapshot.image_digest == image.digest
            )
            or "none",
        )
    Console(highlight=False, width=_WIDTH).print(table)


@app.command("remove")
def remove(
    digests: Annotated[list[str], typer.Argument(metavar="DIGEST...", help="Digests, or how they begin.")],
) -> None:
    """Remove images. Machines that run on one go on; a new machine of its profile needs a build first."""
    from foundation.settings import Settings
    from machines.image import remove_image
    from machines.snapshot import discard_snapshots_of

    settings = Settings()
    for digest in digests:
        image = remove_image(settings, digest)
        discard_snapshots_of(settings, image.digest)
        typer.echo(f"Removed image {image.digest[:12]}")


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str], None]]:
    """Timed lines; on a terminal something moves below them. A termination ends the block as Ctrl-C does."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, stderr=True)
    begun = time.monotonic()

    def report(line: str) -> None:
        console.print(Text.assemble((f"{time.monotonic() - begun:6.1f}s  ", "dim"), line))

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if console.is_terminal:
            with console.status(f"{title} (Ctrl-C stops and cleans up)"):
                yield report
        else:
            yield report
    except KeyboardInterrupt:
        console.print("Stopped; nothing of the unfinished image is left.")
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
