"""Bodies of requests: how large they may be, their types, and JSON forms read whole or refused with what is wrong."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, TypeVar

from anyio import to_thread
from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from foundation.documents import Document, Unreadable, read_json, text_of
from foundation.errors import InvalidBody, InvalidParameter, UnsupportedMediaType
from foundation.faults import Fault
from foundation.service.attachment import Attachment
from foundation.service.processes import Command
from workflows.messages import SENTENCE_CHARS
from workflows.runs.budget import TOKENS_MOST, USD_MOST
from workflows.specs.faults import of_rules
from workflows.specs.hosts import MAX_RULES
from workflows.specs.values import HostText
from workflows.specs.wire import NetworkMode

MAX_BODY_BYTES = 2 * 2**20

# What clients send who name no type: curl's -d, and a plain upload.
UNSAID_TYPES = frozenset({"", "application/x-www-form-urlencoded", "text/plain", "application/octet-stream"})
_CHARSETS = frozenset({"", "utf-8", "utf8", "utf-16", "us-ascii", "ascii"})
_SHOWN = 80

Form = TypeVar("Form", bound=BaseModel)


class SentMessage(BaseModel):
    """A further turn for the running agent; with an id, sending it again changes nothing."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1, examples=["Please also update the changelog."])
    id: str | None = Field(None, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*\z")


class Continuation(BaseModel):
    """What a run that goes on from an ended one is to do."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, examples=["Now update the changelog too."])
    id: str | None = Field(None, description="Id of the new run; made by the server when absent")
    conversation: bool = Field(True, description="Continue the agent's conversation too; false: its files alone")


class SentNetwork(BaseModel):
    """Another mode of a run's network, and host rules to be added and removed; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    mode: NetworkMode | None = Field(None, description="isolated, outbound or full", examples=["outbound"])
    allow: list[HostText] = Field(default=[], max_length=MAX_RULES, examples=[["api.example.org", "*.example.net:443"]])
    remove: list[HostText] = Field(default=[], max_length=MAX_RULES, description="Rules as they stand")


class Addition(BaseModel):
    """What is added to the budget of a run that has used it up."""

    model_config = ConfigDict(extra="forbid", strict=True)

    budget_usd: float | None = Field(None, gt=0, le=USD_MOST, description="US dollars", examples=[5])
    tokens: int | None = Field(None, ge=1, le=TOKENS_MOST)


class Cancellation(BaseModel):
    """Why a run is to end, and whether at once."""

    model_config = ConfigDict(extra="forbid")

    reason: str | None = Field(None, max_length=SENTENCE_CHARS, examples=["No longer needed"])
    force: bool | None = Field(None, description="Kill the agent without its grace period")


def _base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64") from None
    return text


class Execution(Command):
    """A command to be run in a run's machine, with all of its input."""

    stdin: Annotated[str, AfterValidator(_base64)] | None = Field(None, description="Its standard input, as base64")

    @property
    def attachment(self) -> Attachment:
        """The same as the machine's host takes it."""
        fields = {name: getattr(self, name) for name in Command.model_fields}
        return Attachment(**fields, stdin=self.stdin is not None)


def check_charset(content_type: str) -> str:
    """The media type in a Content-Type header. Raises UnsupportedMediaType when its text is none that is read."""
    media_type, *parameters = (part.strip() for part in content_type.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip(" \"'").lower() not in _CHARSETS:
            raise UnsupportedMediaType(f"Text is read as UTF-8, not as {value.strip()[:40]}; send it so.")
    return media_type.lower()


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


def _read(body: bytes) -> Document:
    try:
        return read_json(text_of(body))
    except Unreadable as error:
        raise InvalidParameter(f"The body is not readable as JSON: {error}.", field="body") from None


def _fields(form: type[BaseModel]) -> str:
    return ", ".join(f"'{name}'" for name in form.model_fields)
