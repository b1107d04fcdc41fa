"""Git on what a guest may have forged: confined, with a git directory and settings of ours, within a run's time.

Of the guest only contents are used, never its configuration, hooks, alternates, grafts or replacements.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from machines.disks.confinement import Confinement

# The most that git may write into one file: a patch, a pack.
FILE_MAX = 4 * 2**30

_SECONDS = 600.0
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class ConfinedGit:
    """Git with the directory ``scratch/git`` as its own and the objects of ``mirror`` as further ones, read only.

    ``readable`` maps paths inside to further paths of the host; only ``/scratch`` can be written. No run lasts beyond
    ``deadline`` (of time.monotonic).
    """

    mirror: Path
    scratch: Path
    deadline: float
    readable: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 8 * 2**30

    @property
    def is_late(self) -> bool:
        """Whether the time for all runs is over."""
        return time.monotonic() > self.deadline

    def init(self, base: str) -> None:
        """Make the git directory, in the object format of the commit id ``base``."""
        self.run("init", "--quiet", "--template=", f"--object-format={object_format(base)}")

    def run(
        self,
        *arguments: str,
        work_tree: str = "/scratch",
        environment: Mapping[str, str] | None = None,
        input: bytes = b"",  # noqa: A002 -- the name subprocess gives it
        stdout: IO[bytes] | None = None,
        check: bool = True,
    ) -> bytes:
        """Output of one command. Raises MachineError when it fails, prints too much, or its time is over."""
        confined = Confinement(
            readable={"/mirror": self.mirror, **self.readable},
            writable={"/scratch": self.scratch},
            environment={**_ENVIRONMENT, "GIT_WORK_TREE": work_tree, **self.environment, **(environment or {})},
            seconds=max(1.0, min(_SECONDS, self.deadline - time.monotonic())),
            file_bytes=FILE_MAX,
            memory_bytes=self.memory_bytes,
        )
        command = ["git", *_GUARDS, "-C", work_tree, *arguments]
        return confined.run(command, input=input, stdout=stdout, check=check).stdout

    def set_attributes(self, lines: str) -> None:
        """Attributes that outrank those of the tree."""
        info = self.scratch / "git" / "info"
        info.mkdir(exist_ok=True)
        (info / "attributes").write_text(lines)


def object_format(commit: str) -> str:
    """Git's name of the hash that the full id of a commit was made with."""
    return "sha256" if len(commit) == _SHA256_DIGITS else "sha1"


def null_separated(listing: bytes) -> list[str]:
    """Names of a listing made with ``-z``."""
    return [os.fsdecode(name) for name in listing.split(b"\0") if name]


_ENVIRONMENT = {
    "HOME": "/nonexistent",
    "GIT_DIR": "/scratch/git",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES": "/mirror/objects",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "",
}
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.fileMode": "true",
    "core.symlinks": "true",
    # Names that only other systems would mistake for .git are names like any other here.
    "core.protectNTFS": "false",
    "core.protectHFS": "false",
    "core.looseCompression": "0",
    "core.safecrlf": "false",
    "submodule.recurse": "false",
    "gc.auto": "0",
    "pack.threads": "1",
    # What of packs is mapped at once counts against the memory that git may use.
    "core.packedGitWindowSize": "64m",
    "core.packedGitLimit": "1g",
}
_GUARDS = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
