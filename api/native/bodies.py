"""JSON bodies of requests that are no manifest, and query parameters: read whole, or refused with what is wrong."""

from __future__ import annotations

from typing import TypeVar

from anyio import to_thread
from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from api.runs.acceptance import UNSAID_TYPES, check_charset
from foundation.documents import Document, Unreadable, read_json, text_of
from foundation.errors import InvalidBody, InvalidParameter, UnsupportedMediaType
from foundation.faults import Fault
from workflows.specs.faults import of_rules

LABEL = "label."
_LARGEST_ID = 2**63
_SHOWN = 80

Form = TypeVar("Form", bound=BaseModel)


async def read_form(request: Request, form: type[Form], *, of_any_type: bool = False) -> Form:
    """The JSON object in the request's body, of a JSON type or none, or whatever its type says.

    Raises InvalidBody with every fault, InvalidParameter when it is no JSON, UnsupportedMediaType.
    """
    media_type = check_charset(request.headers.get("content-type", ""))
    named = media_type == "application/json" or media_type.endswith("+json") or media_type in UNSAID_TYPES
    if not named and not of_any_type:
        raise UnsupportedMediaType(
            f"The body cannot be read from '{media_type[:_SHOWN]}'; send it as application/json.",
            supported=["application/json"],
        )
    body = await request.body()
    if not body.strip():
        raise InvalidBody.of([Fault("", f"The body is empty; send a JSON object with {_fields(form)}.", "missing")])
    document = await to_thread.run_sync(_read, body)
    data = document.data
    if not isinstance(data, dict):
        raise InvalidBody.of([Fault("", f"The body is no JSON object; send one with {_fields(form)}.", "type")])
    found = list(document.faults)
    try:
        read = form.model_validate(data)
    except ValidationError as error:
        found += of_rules(error.errors(include_url=False, include_input=False), form)
        raise InvalidBody.of(found) from None
    if found:
        raise InvalidBody.of(found)
    return read


async def known_parameters(request: Request) -> None:
    """A dependency that refuses query parameters that the route does not have, and one that is given two values."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    known = {parameter.alias for parameter in route.dependant.query_params}
    labelled = "label.KEY" in str(route.openapi_extra)
    seen: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known and not (labelled and name.startswith(LABEL)):
            there = f"there is {', '.join(sorted(known))}" if known else "there are none"
            raise InvalidParameter(f"'{name[:_SHOWN]}' is no parameter of this; {there}.", field=name[:_SHOWN])
        if seen.setdefault(name, value) != value:
            raise InvalidParameter(f"{name[:_SHOWN]} is asked to be two values at once.", field=name[:_SHOWN])


def parse_entry_id(text: str, field: str) -> int:
    """The id of an entry of a log; 0, which is before the first, for no text. Raises InvalidParameter."""
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(_LARGEST_ID)) or int(text) >= _LARGEST_ID:
        raise InvalidParameter(f"{field} is not the id of an entry: a whole number below 2^63.", field=field)
    return int(text)


def _read(body: bytes) -> Document:
    try:
        return read_json(text_of(body))
    except Unreadable as error:
        raise InvalidParameter(f"The body is not readable as JSON: {error}.", field="body") from None


def _fields(form: type[BaseModel]) -> str:
    return ", ".join(f"'{name}'" for name in form.model_fields)
