"""Files of a guest as messages: names in any bytes, what is known of a file, and what may be changed."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

# As Linux takes a path.
PATH_BYTES = 4095
_NAME_MOST = 255
_TEXT_BYTES = 2**20
_CHANGES_MOST = 1000
#: Files that a list gives at most.
LISTED_MOST = 1_000_000
OWNER = r"^(?:[A-Za-z_][A-Za-z0-9_.-]{0,31}|\d{1,10})$"
#: A name, or uid, or either with a group.
USER = r"^(?:[A-Za-z_][A-Za-z0-9_.-]{0,31}|\d{1,10})(?::(?:[A-Za-z_][A-Za-z0-9_.-]{0,31}|\d{1,10}))?$"
MODE = r"^[0-7]{1,5}$"

ArchiveFormat = Literal["tar", "tar.gz", "zip"]
FileType = Literal["file", "directory", "symlink", "other"]


def name_from(value: Any) -> bytes:
    """The bytes of a path given as text, or as ``{"base64": "…"}``. Raises ValueError."""
    if isinstance(value, bytes):
        name = value
    elif isinstance(value, str):
        try:
            name = value.encode()
        except UnicodeEncodeError:
            raise ValueError("holds half of a character (a lone surrogate); send other bytes as base64") from None
    elif isinstance(value, dict) and set(value) == {"base64"} and isinstance(value["base64"], str):
        try:
            name = base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("is no base64") from None
    else:
        raise ValueError('is a path: text, or {"base64": "…"} for bytes that are no UTF-8')
    if b"\0" in name:
        raise ValueError("must not hold a NUL")
    if len(name) > PATH_BYTES or any(len(part) > _NAME_MOST for part in name.split(b"/")):
        raise ValueError(f"is longer than a path can be: {PATH_BYTES} bytes, and {_NAME_MOST} for each of its parts")
    return name


def printable(name: bytes) -> str:
    """A path as it is shown: bytes that are no UTF-8 are replaced."""
    return name.decode(errors="replace")


def exact(name: bytes) -> str | None:
    """The base64 of a path that its text does not give again; None for the others."""
    return None if printable(name).encode() == name else base64.b64encode(name).decode()


def name_as_json(name: bytes) -> str | dict[str, str]:
    """A path as ``name_from`` reads it."""
    coded = exact(name)
    return printable(name) if coded is None else {"base64": coded}


def _path_from(value: Any) -> bytes:
    name = name_from(value)
    if not name:
        raise ValueError("is empty; '.' is the workspace")
    return name


def _bytes_from(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("is text")  # noqa: TRY004 -- what pydantic asks for
    try:
        text = value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate)") from None
    if len(text) > _TEXT_BYTES:
        raise ValueError(f"is longer than {_TEXT_BYTES} bytes")
    if b"\0" in text:
        raise ValueError("must not hold a NUL")
    return text


def _filled_from(value: Any) -> bytes:
    text = _bytes_from(value)
    if not text:
        raise ValueError("is empty")
    return text


_PATH_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {"base64": {"type": "string"}},
            "required": ["base64"],
            "additionalProperties": False,
        },
    ]
}
_AS_NAME = PlainSerializer(name_as_json)
_AS_TEXT = PlainSerializer(lambda text: text.decode(errors="replace"), return_type=str)
_TEXT_SCHEMA = WithJsonSchema({"type": "string"})

#: A path in the guest: relative to the workspace, or to the user's home in a machine that has none.
GuestPath = Annotated[bytes, BeforeValidator(_path_from), _AS_NAME, WithJsonSchema(_PATH_SCHEMA)]
Mode = Annotated[str, Field(pattern=MODE, description="Octal, such as 0644")]
Owner = Annotated[str, Field(pattern=OWNER, description="A name, or a number")]


class _Change(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MakeDirectory(_Change):
    """Make a directory; with ``parents`` those above it too, and one that is there already is as good."""

    operation: Literal["make_directory"]
    path: GuestPath
    parents: bool = True
    mode: Mode | None = None
    owner: Owner | None = None
    group: Owner | None = None


class Move(_Change):
    """Give a file or directory another place, whose directory is made. What is there already is an error, or goes."""

    operation: Literal["move"]
    source: GuestPath
    destination: GuestPath
    overwrite: bool = False


class Remove(_Change):
    """Remove a file, a link, or a directory: none at all, an empty one, or one with all that is in it."""

    operation: Literal["remove"]
    path: GuestPath
    directories: Literal["refuse", "empty", "recursive"] = "empty"
    missing_ok: bool = False


class SetAccess(_Change):
    """Set mode, owner and group of what is there."""

    operation: Literal["set_access"]
    path: GuestPath
    mode: Mode | None = None
    owner: Owner | None = None
    group: Owner | None = None


class Replace(_Change):
    """Replace a text in a file, everywhere or ``most`` times; the file is whole at any time."""

    operation: Literal["replace"]
    path: GuestPath
    old: Annotated[bytes, BeforeValidator(_filled_from), _AS_TEXT, _TEXT_SCHEMA]
    new: Annotated[bytes, BeforeValidator(_bytes_from), _AS_TEXT, _TEXT_SCHEMA]
    most: int | None = Field(None, ge=1, lt=2**31)


Change = Annotated[MakeDirectory | Move | Remove | SetAccess | Replace, Field(discriminator="operation")]


class Changes(BaseModel):
    """Changes, made in their order until one fails, which does not undo those before it."""

    model_config = ConfigDict(extra="forbid")

    changes: list[Change] = Field(min_length=1, max_length=_CHANGES_MOST)


class Changed(BaseModel):
    """What came of a change: how often a text was replaced, whether something was there to be removed."""

    operation: str = Field(examples=["replace"])
    replaced: int | None = None
    removed: bool | None = None


class AllChanged(BaseModel):
    """What came of each change, in their order."""

    changed: list[Changed] = Field(examples=[[{"operation": "replace", "replaced": 3}]])


class FileInfo(BaseModel):
    """What is known of a file. ``path`` is as it was asked for, in lists relative to their directory.

    ``path_base64`` and ``target_base64`` are set where the text does not give the bytes again. ``target`` is where a
    symbolic link points. ``allocated_bytes`` is what it takes of the disk.
    """

    path: str = Field(examples=["src/main.py"])
    path_base64: str | None = None
    type: FileType
    size: int
    mode: str
    owner: str
    group: str
    uid: int
    gid: int
    modified_at: datetime
    created_at: datetime | None = None
    allocated_bytes: int = 0
    links: int = 1
    target: str | None = None
    target_base64: str | None = None


_SHOWN = [
    {
        "path": "src/main.py", "type": "file", "size": 812, "mode": "0644", "owner": "agent", "group": "agent",
        "uid": 1000, "gid": 1000, "modified_at": "2026-01-29T10:30:00.123456Z",
    }
]  # fmt: skip


class Files(BaseModel):
    """Facts of files, in the order in which they were asked for."""

    files: list[FileInfo] = Field(examples=[_SHOWN])


class FileList(Files):
    """Files of a directory, with paths relative to it: ``truncated`` when there are more, and what was not let in."""

    truncated: bool = False
    unreadable: list[str] = []


class Extracted(BaseModel):
    """What came of an archive: members laid out, their bytes, and those left out, as they are no files."""

    files: int = Field(examples=[12])
    size_bytes: int
    skipped: list[str] = []


# --- What a host is asked for: each in the parameter ``request`` of its path, as JSON ---------------------------------

#: Name of that parameter, and the parts of the paths below that of a machine.
REQUEST = "request"
INFO, LISTED, CONTENT, CHANGED, ARCHIVE = (
    ("files", "info"), ("files", "list"), ("files", "content"), ("files", "changes"), ("files", "archive"),
)  # fmt: skip


class _Request(BaseModel):
    """``user`` is a name or a number of the guest, or either with ``:group``."""

    user: str = Field("agent", pattern=USER)


class LookAt(_Request):
    """Facts of files; with ``follow``, of what links lead to."""

    paths: list[GuestPath] = Field(min_length=1, max_length=_CHANGES_MOST)
    follow: bool = False


class ListFiles(_Request):
    """What is below a directory, to a depth (0: all of it), all or what matches a pattern."""

    path: GuestPath
    depth: int = Field(1, ge=0, le=2**16)
    pattern: str | None = None
    files_only: bool = False
    most: int = Field(LISTED_MOST, ge=1, le=LISTED_MOST)


class ReadFile(_Request):
    """A file, from one byte to another, the last bytes when only ``last`` is given, or lines from ``line`` (1) on."""

    path: GuestPath
    first: int | None = Field(None, ge=0, lt=2**63)
    last: int | None = Field(None, ge=0, lt=2**63)
    line: int | None = Field(None, ge=1, lt=2**63)
    lines: int | None = Field(None, ge=0, lt=2**63)


class WriteFile(_Request):
    """A file written whole. What is not given is kept of one that is there; ``new`` refuses one."""

    path: GuestPath
    mode: Mode | None = None
    owner: Owner | None = None
    group: Owner | None = None
    modified_ns: int | None = Field(None, ge=-(2**62), lt=2**62)
    parents: bool = True
    new: bool = False


class ChangeFiles(_Request):
    """Who makes the changes of the body."""


class PackArchive(_Request):
    """What is at a path as an archive."""

    path: GuestPath
    format: ArchiveFormat = "tar.gz"


class UnpackArchive(_Request):
    """An archive laid out below a directory; without ``format``, the one that it begins like."""

    path: GuestPath
    format: ArchiveFormat | None = None
    keep_owners: bool = False
