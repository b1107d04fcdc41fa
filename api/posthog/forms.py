"""Bodies of requests: JSON objects, of which unknown keys are left out, and what is wrong is told by its field."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar
from uuid import UUID

from anyio import to_thread
from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from foundation.documents import Document, Unreadable, read_json, text_of
from foundation.errors import InvalidBody, PayloadTooLarge, UnsupportedMediaType
from foundation.faults import MOST_FAULTS, Fault, below

#: What no body of this dialect exceeds: an artifact of 30 MiB as base64, with what stands around it.
MOST_BYTES = 42 * 2**20
#: What a form takes that holds no files.
FORM_BYTES = 2 * 2**20

# What clients send who name no type.
_JSON_TYPES = frozenset({"", "application/json", "text/plain", "application/x-www-form-urlencoded"})

Model = TypeVar("Model", bound=BaseModel)


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise ValueError("Must be a valid UUID.") from None


Uuid = Annotated[str, AfterValidator(_uuid)]


class Form(BaseModel):
    """Base of the forms. What is text must be text: a number is not written into it unseen."""

    model_config = ConfigDict(extra="ignore")


async def read_form(
    request: Request, form: type[Model], *, most_bytes: int = FORM_BYTES, content: re.Pattern[str] | None = None
) -> Model:
    """The form in the request's body; an absent body is an empty one. The places of ``content`` may hold a NUL.

    Raises InvalidBody with every fault, PayloadTooLarge, UnsupportedMediaType.
    """
    data = await read_object(request, most_bytes=most_bytes, content=content)
    # A schema in it takes long to be checked.
    return await to_thread.run_sync(form_of, form, data)


async def read_object(
    request: Request, *, most_bytes: int = FORM_BYTES, content: re.Pattern[str] | None = None
) -> dict[str, Any]:
    """The JSON object in the request's body; an absent body is an empty one. Takes and raises as ``read_form``."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in _JSON_TYPES and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f'Unsupported media type "{media_type[:80]}" in request; send application/json.')
    body = await request.body()
    if len(body) > most_bytes:
        raise PayloadTooLarge(f"The body has more than {most_bytes} bytes.")
    if not body.strip():
        return {}
    document = await to_thread.run_sync(_read, body)
    if not isinstance(document.data, dict):
        raise InvalidBody.of([Fault("", "Invalid data. Expected a dictionary.", "invalid")])
    faults = [
        fault
        for fault in document.faults
        if fault.validation != "nul" or content is None or not content.fullmatch(fault.field)
    ]
    if faults:
        raise InvalidBody.of(faults)
    return document.data


def form_of(form: type[Model], data: dict[str, Any]) -> Model:
    """The form in data. Raises InvalidBody with every fault."""
    try:
        return form.model_validate(data)
    except ValidationError as error:
        raise InvalidBody.of([_fault(item) for item in error.errors(include_url=False)[:MOST_FAULTS]]) from None


def _read(body: bytes) -> Document:
    try:
        return read_json(text_of(body))
    except Unreadable as error:
        raise InvalidBody.of([Fault("", f"JSON parse error - {error}", "parse_error")]) from None


def _fault(item: Any) -> Fault:
    place = ""
    for part in item["loc"]:
        place = below(place, part)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        message = "This field is required."
    return Fault(place, message, item["type"])
