"""Where a guest image's packages come from: the Debian mirrors, proxies and certificates this host itself uses."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from urllib.parse import urlsplit

from foundation.child_environment import child_environment
from foundation.errors import ImageBuildFailed
from foundation.settings import Settings

_TARGET_FORMAT = "$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)"
# How to reach a mirror. The rest of the host's apt configuration is about the host.
_TRANSPORT_OPTIONS = (
    "Acquire::http",  # and https, by its beginning: proxies, certificates
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Retries",
    "Acquire::ForceIPv",
)


def mirror_lines(settings: Settings, release: str) -> list[str]:
    """The apt sources of a release, with its security suite: the one set, else the host's own.

    Raises ImageBuildFailed when neither is there: the host runs another release.
    """
    if settings.image_mirror:
        return _lines_of(settings.image_mirror, release)
    lines = host_lines(_ask("apt-get", "indextargets", "--format", _TARGET_FORMAT, "Created-By: Packages"), release)
    if not lines:
        raise ImageBuildFailed(
            f"The apt sources of this host name no mirror of Debian {release}; set TASKYARD_IMAGE_MIRROR to one."
        )
    return lines


def guest_lines(lines: Sequence[str]) -> list[str]:
    """Those of the sources that a guest may have as well: of a server, and without anybody's credentials."""
    urls = {line: urlsplit(line.split()[1]) for line in lines}
    return [line for line, url in urls.items() if url.scheme in {"http", "https"} and "@" not in url.netloc]


def host_lines(targets: str, release: str) -> list[str]:
    """Debian's own suites of a release among apt's index targets (``origin|suite|component|uri``), as apt sources."""
    suites = (release, f"{release}-updates", f"{release}-security")
    found: dict[str, None] = {}
    for target in targets.splitlines():
        origin, suite, component, uri = target.split("|", 3)
        # The origin is known only once the host has fetched the suite's lists.
        if suite in suites and component == "main" and origin in {"Debian", ""}:
            found.setdefault(f"deb {uri} {suite} {component}")
    # Without the release itself the rest is of no use: the host runs another one.
    return list(found) if any(line.split()[2] == release for line in found) else []


def apt_options() -> list[str]:
    """The host's apt settings that say how mirrors are reached, one to a line. A proxy's may hold a password."""
    options: list[str] = []
    for line in _ask("apt-config", "dump").splitlines():
        name, _, value = line.partition(" ")
        if name.startswith(_TRANSPORT_OPTIONS) and value not in {'"";', '""'}:
            options.append(line)
    return options


def _lines_of(mirror: str, release: str) -> list[str]:
    """A mirror's sources; one that ends in /debian has its security suite beside it, as Debian lays mirrors out."""
    base = mirror.rstrip("/")
    lines = [f"deb {base} {release} main", f"deb {base} {release}-updates main"]
    if base.endswith("/debian"):
        lines.append(f"deb {base}-security {release}-security main")
    return lines


def _ask(*command: str) -> str:
    return subprocess.run(command, env=child_environment(), check=True, capture_output=True, text=True).stdout
