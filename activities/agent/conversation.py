"""The conversation of an agent as Claude Code keeps it: its id, its place in a workspace, and how another continues it.

It is a file of JSON lines that the guest writes. No host reads what it says: it is data for another guest alone.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from uuid import UUID, uuid5

from guest.contract import CONVERSATIONS, WORKSPACE
from guest.programs import agent_program

#: A larger one is not kept.
CONVERSATION_BYTES = 256 * 2**20

_PLACE = CONVERSATIONS.removeprefix(f"{WORKSPACE}/")
_ENDING = ".jsonl"
_PROJECT = re.compile(r"[A-Za-z0-9-]{1,255}")
# Longer names get another end.
_PROJECT_CHARS = 200
# Ids of all runs' conversations are made in it.
_NAMESPACE = UUID("5f0c6d0e-7f0b-4b55-9f0e-0d6f3a2c8e11")
_PROGRAM = "keep-conversation"


def conversation_id(machine_id: str) -> str:
    """The id that Claude Code is told to give its conversation in this machine."""
    return str(uuid5(_NAMESPACE, machine_id))


def keeping(command: list[str], machine_id: str, continued: str | None) -> list[str]:
    """The command of an agent whose conversation is kept, and goes on from the one with the id ``continued``.

    It goes on in a copy, under an id of its own: several runs may continue the same one.
    """
    options = [f"--session-id={conversation_id(machine_id)}"]
    if continued is not None:
        options += [f"--resume={continued}", "--fork-session"]
    return ["perl", "-e", agent_program(_PROGRAM), CONVERSATIONS, *command, *options]


def project_of(subpath: str | None) -> str:
    """What Claude Code calls the project of an agent that starts in this directory of the repository.

    Raises ValueError for one whose name it makes otherwise, which nobody knows here.
    """
    name = re.sub(r"[^A-Za-z0-9]", "-", f"{WORKSPACE}/{posixpath.normpath(subpath)}" if subpath else WORKSPACE)
    if len(name) > _PROJECT_CHARS:
        raise ValueError("a long name")
    return name


def place_in(tree: Path) -> Path:
    """Where a workspace keeps conversations."""
    return tree / _PLACE


def project_at(path: str, machine_id: str) -> str | None:
    """The project of the machine's conversation, when that is what lies at the path of its workspace; None if not."""
    directory, _, name = path.rpartition("/")
    above, _, project = directory.rpartition("/")
    if above != _PLACE or name != conversation_id(machine_id) + _ENDING or not _PROJECT.fullmatch(project):
        return None
    return project


def file_of(tree: Path, project: str, conversation: str) -> Path:
    """Where the conversation of a project lies in a workspace. Raises ValueError for what is no project, or no id."""
    if not _PROJECT.fullmatch(project):
        raise ValueError("no project")
    return place_in(tree) / project / f"{UUID(conversation)}{_ENDING}"
