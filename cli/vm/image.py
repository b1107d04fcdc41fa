"""The commands `sandbox image`: build, list and remove guest images."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from cli import completion
from cli.options import OutputFormat, format_of, print_data, writes_data

app = typer.Typer(help="Build and list guest images.", no_args_is_help=True)


@app.command("build")
def build(
    profile: Annotated[
        str,
        typer.Option(
            help="Image profile: agentic-dev or basic.", autocompletion=completion.words("agentic-dev", "basic")
        ),
    ] = "agentic-dev",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again although the image is there.")] = False,
) -> None:
    """Build the guest image of a profile, unless the image of the same inputs is there already.

    Example: sandbox image build --profile basic
    """
    from foundation.settings import Settings
    from foundation.units import format_size
    from machines.images.store import build_image

    with _progress(f"Building the guest image '{profile}'") as report:
        image = build_image(Settings(), profile, report, rebuild=rebuild)
    typer.echo(f"{image.profile} {image.digest[:12]}, {format_size(image.size_bytes)}, in {image.directory}")


@app.command("list")
@writes_data
def list_images(ctx: typer.Context) -> None:
    """List the images on this host with their snapshots, newest first; a star marks those that new machines use."""
    from cli.task.view import when
    from cli.terminal import print_rows, print_table, talk
    from foundation.settings import Settings
    from foundation.units import format_seconds, format_size
    from machines.images.store import current_digests
    from machines.images.store import list_images as find_all
    from machines.snapshots.snapshot import list_snapshots

    images = find_all(Settings())
    current = current_digests()
    snapshots = list_snapshots(Settings())
    facts = [
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
    written = format_of(ctx, OutputFormat.TABLE)
    if print_data(facts, written):
        return
    if written is OutputFormat.NAME:
        print_rows([image.digest] for image in images)
        return
    rows = [
        (
            image.profile,
            image.digest[:12],
            "*" if image.digest in current else "",
            format_size(image.size_bytes),
            when(image.built_at),
            format_seconds(image.build_seconds),
            image.versions.get("claude-code", ""),
            ", ".join(
                f"{snapshot.cpus} CPUs {format_size(snapshot.memory_bytes)}: {format_size(snapshot.bytes)}"
                for snapshot in snapshots
                if snapshot.image_digest == image.digest
            )
            or "none",
        )
        for image in images
    ]
    if written is OutputFormat.TEXT:
        print_rows(rows)
    elif images:
        print_table(("PROFILE", "DIGEST", "", "SIZE", "BUILT", "TOOK", "CLAUDE CODE", "SNAPSHOTS"), rows)
    else:
        talk().print("No images on this host; build one with: sandbox image build")


@app.command("remove")
def remove(
    digests: Annotated[
        list[str],
        typer.Argument(
            metavar="DIGEST...", help="Digests, or how they begin.", autocompletion=completion.image_digests
        ),
    ],
) -> None:
    """Remove images. Machines that run on one go on; a new machine of its profile needs a build first.

    Example: sandbox image remove c02538b9
    """
    from foundation.settings import Settings
    from machines.images.store import remove_image
    from machines.snapshots.snapshot import discard_snapshots_of

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
