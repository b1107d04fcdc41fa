"""Files of a run's machine: /api/v1/tasks/{id}/files and below."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel

from api.deps import Services, ServicesOf
from api.http.ranges import asked_range
from api.machines.answer import TOLD, HostAnswer
from api.native import errors, examples, views
from api.native.bodies import read_form
from api.native.parameters import known_parameters
from foundation.errors import (
    ArchiveRefused,
    DirectoryNotEmpty,
    FileDenied,
    FileError,
    FileExists,
    FileNotFound,
    GuestDiskFull,
    InvalidBody,
    InvalidParameter,
    MachineLost,
    MachineUnavailable,
    PayloadTooLarge,
    RangeNotSatisfiable,
    TaskNotFound,
    UnsupportedMediaType,
    WrongFileType,
)
from foundation.service.files import (
    ARCHIVE,
    CHANGED,
    CONTENT,
    INFO,
    LISTED,
    LISTED_MOST,
    MODE,
    OWNER,
    REQUEST,
    USER,
    AllChanged,
    ArchiveFormat,
    ChangeFiles,
    Changes,
    Extracted,
    FileInfo,
    FileList,
    Files,
    ListFiles,
    LookAt,
    PackArchive,
    ReadFile,
    UnpackArchive,
    WriteFile,
    name_from,
)

router = APIRouter(prefix=f"{views.BASE}/{{task_id}}/files", tags=["files"], dependencies=[Depends(known_parameters)])

# Of no machine's file is a browser to make a page of this server.
_TOLD = (*TOLD, "x-content-type-options")
_MACHINE = (TaskNotFound, MachineUnavailable, MachineLost, InvalidParameter)
_FILE = (*_MACHINE, FileNotFound, FileDenied, WrongFileType, FileError)
_LARGEST = 2**63 - 1

User = Annotated[str, Query(pattern=USER, description="The guest's user, by name or number, with :group if need be")]
PathText = Annotated[
    str | None, Query(description="A path in the machine; relative to the workspace", examples=["src/main.py"])
]
PathBytes = Annotated[str | None, Query(description="The same as base64, for bytes that are no UTF-8")]


async def _path(path: PathText = None, path_base64: PathBytes = None) -> bytes:
    if (path is None) is (path_base64 is None):
        raise InvalidParameter("Give path, or path_base64.", field="path")
    field = "path" if path_base64 is None else "path_base64"
    try:
        name = name_from(path if path_base64 is None else {"base64": path_base64})
    except ValueError as error:
        raise InvalidParameter(f"{field} {error}.", field=field) from error
    if not name:
        raise InvalidParameter("path is empty; '.' is the workspace.", field=field)
    return name


async def _directory(path: PathText = None, path_base64: PathBytes = None) -> bytes:
    return b"." if path is None and path_base64 is None else await _path(path, path_base64)


Path = Annotated[bytes, Depends(_path)]
Directory = Annotated[bytes, Depends(_directory)]


@router.get(
    "/info",
    summary="Look at a file",
    response_model=Files,
    responses=errors.responses(*_FILE),
)
async def look_at_file(
    task_id: str,
    services: ServicesOf,
    path: Path,
    user: User = "agent",
    follow: Annotated[bool, Query(description="Of a link, what it leads to")] = False,
) -> Response:
    """Type, size, mode, owner and times of one file, as a list of one."""
    return _answer(services, task_id, "GET", INFO, LookAt(paths=[path], follow=follow, user=user))


@router.get(
    "/list",
    summary="List a directory",
    response_model=FileList,
    responses=errors.responses(*_FILE),
)
async def list_files(
    task_id: str,
    services: ServicesOf,
    path: Directory,
    user: User = "agent",
    depth: Annotated[int, Query(ge=0, le=2**16, description="Levels; 0: all")] = 1,
    limit: Annotated[int, Query(ge=1, le=LISTED_MOST, description="Most files to tell of")] = LISTED_MOST,
) -> Response:
    """What is in a directory, by name, each directory before what is in it; paths are relative to it."""
    return _answer(services, task_id, "GET", LISTED, ListFiles(path=path, depth=depth, most=limit, user=user))


@router.get(
    "/search",
    summary="Search for files",
    response_model=FileList,
    responses=errors.responses(*_FILE),
)
async def search_files(
    task_id: str,
    services: ServicesOf,
    path: Directory,
    pattern: Annotated[
        str,
        Query(min_length=1, max_length=1024, description="*, ?, [a-z]; with a slash for whole paths, where ** is any"),
    ],
    user: User = "agent",
    depth: Annotated[int, Query(ge=0, le=2**16, description="Levels; 0: all")] = 0,
    files_only: Annotated[bool, Query(description="Regular files alone")] = False,
    limit: Annotated[int, Query(ge=1, le=LISTED_MOST, description="Most files to tell of")] = LISTED_MOST,
) -> Response:
    """What is below a directory and matches a pattern, as a list."""
    asked = ListFiles(path=path, depth=depth, pattern=pattern, files_only=files_only, most=limit, user=user)
    return _answer(services, task_id, "GET", LISTED, asked)


@router.get(
    "/content",
    summary="Read a file",
    response_class=Response,
    responses=errors.responses(*_FILE, RangeNotSatisfiable)
    | {
        200: {"description": "The bytes", "content": {"application/octet-stream": {"example": "hello\n"}}},
        206: {"description": "The range asked for", "content": {"application/octet-stream": {"example": "he"}}},
    },
)
async def read_file(
    task_id: str,
    services: ServicesOf,
    path: Path,
    user: User = "agent",
    first_line: Annotated[int | None, Query(ge=1, le=_LARGEST, description="Lines from this one on")] = None,
    line_count: Annotated[int | None, Query(ge=0, le=_LARGEST, description="So many lines")] = None,
    range_header: Annotated[str | None, Header(alias="Range")] = None,
) -> Response:
    """A file, whole, a range of its bytes, or some of its lines."""
    part = asked_range(range_header)
    if part is not None and (first_line is not None or line_count is not None):
        raise InvalidParameter("Ask for a range of bytes or for lines, not for both.", field="first_line")
    first, last = part or (None, None)
    asked = ReadFile(path=path, first=first, last=last, line=first_line, lines=line_count, user=user)
    return _answer(services, task_id, "GET", CONTENT, asked)


@router.put(
    "/content",
    summary="Write a file",
    response_model=FileInfo,
    responses=errors.responses(*_FILE, FileExists, GuestDiskFull),
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"example": "hello\n"}}}},
)
async def write_file(  # noqa: PLR0917 -- named by their names
    task_id: str,
    services: ServicesOf,
    path: Path,
    user: User = "agent",
    mode: Annotated[str | None, Query(pattern=MODE, description="Octal; else as it is, or 0644")] = None,
    owner: Annotated[str | None, Query(pattern=OWNER, description="A name or a number")] = None,
    group: Annotated[str | None, Query(pattern=OWNER, description="A name or a number")] = None,
    modified_ns: Annotated[
        int | None, Query(ge=-(2**62), lt=2**62, description="Time of change, in nanoseconds since 1970")
    ] = None,
    parents: Annotated[bool, Query(description="Make the directories above it")] = True,
    new: Annotated[bool, Query(description="Refuse to replace what is there")] = False,
) -> Response:
    """Write the body into a file, whole: until all of it has come, what was there stays. A link is followed."""
    access = {"mode": mode, "owner": owner, "group": group}
    asked = WriteFile(path=path, user=user, **access, modified_ns=modified_ns, parents=parents, new=new)
    return _answer(services, task_id, "PUT", CONTENT, asked, body=True)


@router.post(
    "/changes",
    summary="Change files",
    responses=errors.responses(
        *(*_FILE, FileExists, DirectoryNotEmpty, GuestDiskFull),
        *(InvalidBody, PayloadTooLarge, UnsupportedMediaType),
    ),
    openapi_extra=examples.CHANGES_BODY,
)
async def change_files(task_id: str, request: Request, services: ServicesOf, user: User = "agent") -> AllChanged:
    """Make directories, move, remove, set mode and owner, replace text: in this order, until one fails."""
    changes = await read_form(request, Changes)
    async with services.hosts.asked(
        services.machines.finder(task_id),
        "files",
        "POST",
        CHANGED,
        params=_params(ChangeFiles(user=user)),
        headers={"Content-Type": "application/json"},
        content=changes.model_dump_json().encode(),
    ) as response:
        return AllChanged.model_validate_json(await response.aread())


@router.get(
    "/archive",
    summary="Download an archive of files",
    response_class=Response,
    responses=errors.responses(*_FILE)
    | {200: {"description": "The archive", "content": {"application/gzip": {"example": "…"}}}},
)
async def pack_archive(
    task_id: str,
    services: ServicesOf,
    path: Directory,
    user: User = "agent",
    archive_format: Annotated[ArchiveFormat, Query(alias="format")] = "tar.gz",
) -> Response:
    """What is in a directory, or a file, with names relative to it. An answer that is cut off is no whole archive."""
    return _answer(services, task_id, "GET", ARCHIVE, PackArchive(path=path, format=archive_format, user=user))


@router.put(
    "/archive",
    summary="Upload an archive of files",
    response_model=Extracted,
    responses=errors.responses(*_FILE, ArchiveRefused, FileExists, GuestDiskFull, PayloadTooLarge),
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"example": "…"}}}},
)
async def unpack_archive(
    task_id: str,
    services: ServicesOf,
    path: Directory,
    user: User = "agent",
    archive_format: Annotated[
        ArchiveFormat | None, Query(alias="format", description="Without it, what it begins like")
    ] = None,
    keep_owners: Annotated[
        bool, Query(description="Owners by number, and set-id bits, as the archive has them")
    ] = False,
) -> Response:
    """Lay the body out below a directory, which is made. No member leaves it, by its name or through a link."""
    asked = UnpackArchive(path=path, format=archive_format, keep_owners=keep_owners, user=user)
    return _answer(services, task_id, "PUT", ARCHIVE, asked, body=True)


def _answer(
    services: Services,
    task_id: str,
    method: str,
    parts: tuple[str, ...],
    asked: BaseModel,
    *,
    body: bool = False,
) -> HostAnswer:
    find = services.machines.finder(task_id)
    return HostAnswer(services.hosts, find, "files", method, parts, params=_params(asked), body=body, told=_TOLD)


def _params(asked: BaseModel) -> dict[str, str]:
    return {REQUEST: asked.model_dump_json(exclude_none=True)}
