"""The programs that the host sends into a guest, as it sends them: commands for its shell, and files to be laid there.

They are read once for each process. None of them is part of the guest image, so that a change makes no new one.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
#: What the image of every guest holds: ``rootfs`` from its / on, and ``setup.sh``, run inside it.
IMAGE_DIR = _HERE / "image"

# The continuation of a line that is long for people, not for the guest.
_CONTINUED = re.compile(r"\\\n *")


def process_program(name: str) -> bytes:
    """A program of ``process/`` as it is laid into the guest, whole."""
    return _content(_HERE / "process" / name)


def workspace_program(name: str) -> bytes:
    """A program of ``workspace/`` as it is laid into the git directory of a workspace, whole."""
    return _content(_HERE / "workspace" / name)


@cache
def agent_program(name: str) -> str:
    """A program of ``agent/``, which perl runs in the agent's place until it becomes the agent, without comments."""
    return _without_comments(_HERE / "agent" / f"{name}.pl")


@cache
def shell_command(name: str) -> str:
    """A program of ``commands/`` for root's shell in the guest, without comments and as few lines as it has."""
    return _CONTINUED.sub("", _text(f"{name}.sh"))


@cache
def perl_program(*names: str) -> str:
    """A program of ``commands/``, or the parts of one, without comments."""
    return "\n".join(_text(f"{name}.pl") for name in names)


def perl_command(name: str) -> str:
    """The command that has perl run a program of ``commands/`` in place of the shell."""
    return f"exec perl -e '\n{perl_program(name)}\n'"


def _text(name: str) -> str:
    return _without_comments(_HERE / "commands" / name)


def _without_comments(path: Path) -> str:
    lines = _content(path).decode().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


@cache
def _content(path: Path) -> bytes:
    return path.read_bytes()
