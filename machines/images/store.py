"""Guest images: named by the digest of everything that shapes them, built once, read-only from then on."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundation import locks
from foundation.durable import sync
from foundation.errors import Conflict, ImageNotFound
from foundation.settings import Settings
from foundation.units import format_seconds, format_size
from machines.images.build import VIRTUAL_SIZE, ImageBuilder, check_tools, remove_build_directory
from machines.images.profile import KERNEL_COMMAND_LINE, Profile, digest_of, image_inputs, load_profile, profile_names

__all__ = [
    "Image",
    "Profile",
    "build_image",
    "current_digests",
    "find_image",
    "image_of",
    "list_images",
    "load_profile",
    "remove_image",
]

# Written last: a directory without it is no image.
_FACTS = "image.json"
_BUILD_PREFIX = ".build-"
_LOCK_PREFIX = ".lock-"


@dataclass(frozen=True)
class Image:
    """A finished image on this host. ``versions`` maps each package inside to its version."""

    profile: str
    digest: str
    directory: Path
    versions: dict[str, str]
    size_bytes: int
    virtual_size: int
    built_at: datetime
    build_seconds: float
    command_line: str

    @property
    def base(self) -> Path:
        """The root disk (raw, ext4 without partitions), to be used as backing file only."""
        return self.directory / "base.raw"

    @property
    def kernel(self) -> Path:
        return self.directory / "kernel"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"


def find_image(settings: Settings, profile: str) -> Image:
    """The image of exactly the current inputs of a profile. Raises ImageNotFound that says how to build it."""
    digest = digest_of(image_inputs(load_profile(profile)))
    image = _read(settings.images / digest)
    if image is None:
        raise ImageNotFound(
            f"The guest image of profile '{profile}' is not built on this host; "
            f"run: sandbox image build --profile {profile}",
            profile=profile,
            digest=digest,
        )
    return image


def image_of(settings: Settings, digest: str) -> Image:
    """The image of a digest, whatever the profiles are now. Raises ImageNotFound."""
    image = _read(settings.images / digest)
    if image is None:
        raise ImageNotFound(f"The image {digest} is not on this host any more", digest=digest)
    return image


def build_image(settings: Settings, profile: str, report: Callable[[str], None], *, rebuild: bool = False) -> Image:
    """The image of a profile, built unless it is there; ``rebuild`` makes it again.

    Of several builders of one image on a host, one builds and the others wait for it. An interrupted build leaves
    nothing that ``find_image`` would take for an image. Raises ImageNotFound (no such profile), HostNotReady,
    ImageBuildFailed.
    """
    description = load_profile(profile)
    inputs = image_inputs(description)
    digest = digest_of(inputs)
    settings.make_home()
    settings.images.mkdir(parents=True, exist_ok=True)
    requested_at = time.time()
    with _locked(settings.images, digest, report):
        _sweep(settings.images, digest)
        found = _read(settings.images / digest)
        # Whoever waited for another builder has what it asked for, also when it asked for a new one.
        if found and (not rebuild or found.built_at.timestamp() >= requested_at):
            report(f"image {digest[:12]} of profile '{profile}' is there already ({format_size(found.size_bytes)})")
            return found
        check_tools()
        if found:
            _check_unused(settings, digest)
        return _build(settings, description, inputs, digest, report)


def list_images(settings: Settings) -> list[Image]:
    """All finished images on this host, the newest first."""
    if not settings.images.is_dir():
        return []
    images = [image for path in settings.images.iterdir() if (image := _read(path))]
    return sorted(images, key=lambda image: image.built_at, reverse=True)


def current_digests() -> set[str]:
    """The digests that the profiles have now; an image of another digest is of older inputs."""
    return {digest_of(image_inputs(load_profile(name))) for name in profile_names()}


def remove_image(settings: Settings, digest: str) -> Image:
    """Remove the image whose digest begins with ``digest``, and return what it was.

    Raises ImageNotFound when none or several do, Conflict while a machine of this host runs on it.
    """
    matching = [image for image in list_images(settings) if digest and image.digest.startswith(digest)]
    if len(matching) != 1:
        problem = (
            "Several images have digests that begin" if matching else "No image on this host has a digest that begins"
        )
        raise ImageNotFound(f"{problem} with '{digest}'; see: sandbox image list", digest=digest)
    with _locked(settings.images, matching[0].digest, lambda _: None):
        _check_unused(settings, matching[0].digest)
        _discard(matching[0].directory)
    return matching[0]


def _build(
    settings: Settings, profile: Profile, inputs: dict[str, Any], digest: str, report: Callable[[str], None]
) -> Image:
    begun = time.monotonic()
    report(f"image {digest[:12]} of profile '{profile.name}': building")
    settings.logs.mkdir(parents=True, exist_ok=True)
    log = settings.logs / f"image-{profile.name}.log"
    log.write_text("")
    work = settings.images / f"{_BUILD_PREFIX}{digest}-{os.getpid()}-{secrets.token_hex(3)}"
    work.mkdir()
    builder = ImageBuilder(settings, profile, work, log, report)
    try:
        versions = builder.build()
        seconds = round(time.monotonic() - begun, 1)
        facts = {
            "profile": profile.name,
            "digest": digest,
            "built_at": datetime.now(UTC).isoformat(),
            "build_seconds": seconds,
            "phase_seconds": builder.seconds,
            "built_on": platform.platform(),
            "size_bytes": sum(path.stat().st_blocks * 512 for path in builder.output.iterdir()),
            "virtual_size": VIRTUAL_SIZE,
            "command_line": KERNEL_COMMAND_LINE,
            "inputs": inputs,
            "versions": versions,
        }
        (builder.output / _FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True))
        _publish(builder.output, settings.images / digest)
    finally:
        builder.remove_tree()
    image = _read(settings.images / digest)
    if image is None:
        raise ImageNotFound(f"The image {digest} was removed while it was being built; build it again")
    report(f"image {digest[:12]}: {format_size(image.size_bytes)} in {format_seconds(seconds)}")
    return image


def _publish(output: Path, target: Path) -> None:
    """Make the files read-only and durable, then let them appear under the image's name, all at once."""
    for path in output.iterdir():
        path.chmod(0o444)
        sync(path)
    sync(output)
    _discard(target)
    output.rename(target)
    sync(target.parent)


def _check_unused(settings: Settings, digest: str) -> None:
    """Raises Conflict while a machine's disk is an overlay on the image: with another base its file system is torn."""
    users = []
    for record in settings.machines.glob("*/machine.json"):
        with suppress(OSError, ValueError):
            if json.loads(record.read_text()).get("image_digest") == digest:
                users.append(record.parent.name)
    if users:
        raise Conflict(
            f"The image {digest[:12]} is in use by {', '.join(sorted(users))}; destroy these machines first: "
            f"sandbox machine destroy {' '.join(sorted(users))}",
            machines=users,
        )


def _discard(directory: Path) -> None:
    """Take a directory out of sight in one step, then remove it: a half-removed image is never seen."""
    aside = directory.with_name(f"{_BUILD_PREFIX}{directory.name}-removed-{secrets.token_hex(3)}")
    try:
        directory.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def _read(directory: Path) -> Image | None:
    """The image in a directory; None when there is no finished one."""
    if directory.name.startswith("."):
        return None
    try:
        facts = json.loads((directory / _FACTS).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Image(
        profile=facts["profile"],
        digest=facts["digest"],
        directory=directory,
        versions=facts["versions"],
        size_bytes=facts["size_bytes"],
        virtual_size=facts["virtual_size"],
        built_at=datetime.fromisoformat(facts["built_at"]),
        build_seconds=facts["build_seconds"],
        command_line=facts["command_line"],
    )


def _sweep(images: Path, digest: str) -> None:
    """Remove what interrupted builds left: of this digest, whose lock is held here, and of others that nobody holds."""
    for path in images.glob(f"{_BUILD_PREFIX}*"):
        other = path.name.removeprefix(_BUILD_PREFIX).split("-", 1)[0]
        if other == digest:
            remove_build_directory(path)
            continue
        with locks.held(images / f"{_LOCK_PREFIX}{other}", patience=0) as alone:
            if alone:
                remove_build_directory(path)


@contextmanager
def _locked(images: Path, digest: str, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of one digest; it ends with the process, however that ends."""

    def busy() -> None:
        report(f"image {digest[:12]}: another process is building it; waiting for it to finish")

    with locks.held(images / f"{_LOCK_PREFIX}{digest}", busy=busy):
        yield
