"""Routes for artifacts of a run: what clients upload, what was collected, and URLs for both."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import Field

from api.deps import ServicesOf
from api.http.downloads import ArtifactResponse
from api.posthog.forms import MOST_BYTES, Form, read_form
from api.posthog.lookup import ParentOf, RunOf, ancestors
from api.posthog.models import artifact_entries
from api.posthog.paths import RUN, TASK
from api.runs.uploads import NAME_CHARS, SOURCE_CHARS, UPLOAD_BYTES, UPLOADS_MOST, Description, Finished, Upload
from foundation.errors import InvalidBody
from foundation.faults import Fault
from foundation.units import format_size
from storage.layout import STAGED, TASKS, Place
from storage.uploads.presigned import VALID_SECONDS

router = APIRouter(tags=["artifacts"])

# A PDF that a user attaches is read by a model, which takes no larger ones.
_PDF_BYTES = 10 * 2**20
_PDF = "application/pdf"
_PATH_CHARS = 500
# Where a body holds the bytes of files, which may be any.
_CONTENT = re.compile(r"artifacts\[[0-9]+\]\.content")


class ArtifactType(StrEnum):
    """What an artifact is."""

    PLAN = "plan"
    CONTEXT = "context"
    REFERENCE = "reference"
    OUTPUT = "output"
    ARTIFACT = "artifact"
    TREE_SNAPSHOT = "tree_snapshot"
    USER_ATTACHMENT = "user_attachment"
    SKILL_BUNDLE = "skill_bundle"


class _Described(Form):
    name: Annotated[str, Field(min_length=1, max_length=NAME_CHARS)]
    type: ArtifactType
    source: Annotated[str, Field(max_length=SOURCE_CHARS)] = ""
    content_type: Annotated[str, Field(max_length=255)] = ""

    def description(self) -> Description:
        return Description(self.name, self.type.value, self.source, self.content_type)


class _Sent(_Described):
    content: str
    content_encoding: Literal["utf-8", "base64"] = "utf-8"


class _Announced(_Described):
    size: Annotated[int, Field(ge=1, strict=True)]


class _Finished(_Described):
    id: Annotated[str, Field(min_length=1, max_length=128)]
    storage_path: Annotated[str, Field(min_length=1, max_length=_PATH_CHARS)]


class _Uploads(Form):
    artifacts: Annotated[list[_Sent], Field(min_length=1, max_length=UPLOADS_MOST)]


class _Announcements(Form):
    artifacts: Annotated[list[_Announced], Field(min_length=1, max_length=UPLOADS_MOST)]


class _Finishes(Form):
    artifacts: Annotated[list[_Finished], Field(min_length=1, max_length=UPLOADS_MOST)]


class _Path(Form):
    storage_path: Annotated[str, Field(min_length=1, max_length=_PATH_CHARS)]


@router.post(f"{RUN}/artifacts", summary="Upload artifacts of a run")
async def upload(run: RunOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Add artifacts with their content; all of the run's artifacts, the new ones last."""
    form = await read_form(request, _Uploads, most_bytes=MOST_BYTES, content=_CONTENT)
    uploads = await to_thread.run_sync(_contents, form.artifacts)
    return {"artifacts": artifact_entries(await services.uploads.store(run.id, uploads))}


@router.post(f"{RUN}/artifacts/prepare_upload", summary="Prepare direct uploads")
async def prepare(run: RunOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """A form of the bucket for each artifact, which the client sends with the file."""
    return await _prepare(TASKS.place(run.id), request, services)


@router.post(f"{RUN}/artifacts/finalize_upload", summary="Finish direct uploads")
async def finalize(run: RunOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Attach what was uploaded by prepared forms; these artifacts alone."""
    return await _finalize(TASKS.place(run.id), request, services)


@router.post(f"{TASK}/staged_artifacts/prepare_upload", summary="Prepare direct uploads for a run to come")
async def prepare_staged(parent: ParentOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """A form of the bucket for each artifact that a run of the task is to begin with."""
    return await _prepare(STAGED.place(parent.id), request, services)


@router.post(f"{TASK}/staged_artifacts/finalize_upload", summary="Finish direct uploads for a run to come")
async def finalize_staged(parent: ParentOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Keep what was uploaded by prepared forms for a run of the task."""
    return await _finalize(STAGED.place(parent.id), request, services)


@router.post(f"{RUN}/artifacts/presign", summary="A URL of the bucket for one artifact")
async def presign(run: RunOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """A signed URL that reads one artifact of the run for an hour."""
    form = await read_form(request, _Path)
    return {"url": await services.uploads.presign(run.id, form.storage_path), "expires_in": VALID_SECONDS}


@router.post(f"{RUN}/artifacts/download", summary="Download one artifact")
async def download(run: RunOf, request: Request, services: ServicesOf) -> Response:
    """The bytes of one artifact of the run, or of an earlier one that it goes on from."""
    form = await read_form(request, _Path)
    found = next((each for each in run.artifacts if each.key == form.storage_path), None)
    if found is None:
        earlier = await ancestors(services, run)
        found = await services.uploads.find([each.id for each in reversed(earlier)], form.storage_path)
    headers = {
        "Content-Length": str(found.size_bytes),
        "ETag": f'"{found.sha256}"',
        "Content-Disposition": "attachment",
        "X-Content-Type-Options": "nosniff",
    }
    stream = await services.uploads.open(found)
    return ArtifactResponse(stream, services.readers, HTTPStatus.OK, found.content_type, headers)


async def _prepare(place: Place, request: Request, services: ServicesOf) -> dict[str, Any]:
    form = await read_form(request, _Announcements)
    for number, each in enumerate(form.artifacts):
        _check_pdf(number, each, each.size)
    wanted = [(each.description(), each.size) for each in form.artifacts]
    # Signing takes a moment of a processor for each.
    prepared = await to_thread.run_sync(services.uploads.prepare, place, wanted)
    return {
        "artifacts": [
            {
                "id": each.id,
                "name": each.description.name,
                "type": each.description.kind,
                "source": each.description.source,
                "size": size,
                "content_type": each.description.content_type,
                "storage_path": each.key,
                "expires_in": VALID_SECONDS,
                "presigned_post": {"url": each.form.url, "fields": each.form.fields},
            }
            for each, (_, size) in zip(prepared, wanted, strict=True)
        ]
    }


async def _finalize(place: Place, request: Request, services: ServicesOf) -> dict[str, Any]:
    form = await read_form(request, _Finishes)
    finished = [Finished(each.id, each.storage_path, each.description()) for each in form.artifacts]
    return {"artifacts": artifact_entries(await services.uploads.finalize(place, finished))}


def _contents(artifacts: Sequence[_Sent]) -> list[Upload]:
    """The artifacts with their content as bytes. Raises InvalidBody."""
    uploads = []
    for number, each in enumerate(artifacts):
        try:
            base64_text = each.content_encoding == "base64"
            content = base64.b64decode(each.content, validate=True) if base64_text else each.content.encode()
        except (binascii.Error, ValueError):
            raise _fault(number, "content", "Invalid base64 content." if base64_text else "Is no text.") from None
        if len(content) > UPLOAD_BYTES:
            raise _fault(number, "content", f"An artifact holds at most {format_size(UPLOAD_BYTES)}.")
        _check_pdf(number, each, len(content))
        uploads.append(Upload(each.description(), content))
    return uploads


def _check_pdf(number: int, each: _Described, size: int) -> None:
    is_pdf = each.content_type.partition(";")[0].strip().lower() == _PDF or each.name.lower().endswith(".pdf")
    if each.type is ArtifactType.USER_ATTACHMENT and is_pdf and size > _PDF_BYTES:
        raise _fault(number, "size", f"An attached PDF holds at most {format_size(_PDF_BYTES)}.")


def _fault(number: int, field: str, message: str) -> InvalidBody:
    return InvalidBody.of([Fault(f"artifacts[{number}].{field}", message, "invalid_input")])
