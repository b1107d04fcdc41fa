"""Every failure as one JSON body, ``{error, message, details}``, with the status of the error's class."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from api.deps import Answers
from api.http.methods import methods_of
from foundation.errors import InvalidBody, InvalidParameter, OriginRefused, ServiceUnavailable, TaskyardError
from foundation.faults import Fault, as_details, sentence
from foundation.urls import without_credentials

_log = structlog.get_logger()

# Facts that the contract's readers look for beside `error`, not below `details` (sections 2.1 and 2.4).
_ALSO_ON_TOP = ("existing_task", "task_state")

_RETRY_AFTER_SECONDS = 2
_LONGEST_PATH = 200
_LONGEST_METHOD = 20

_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    500: "internal_error",
}


class ErrorBody(BaseModel):
    """What every refused request is answered with."""

    error: str = Field(description="Code of the error", examples=["task_not_found"])
    message: str = Field(description="What was wrong and what to do", examples=["No task 'task-001'."])
    details: dict[str, Any] | None = Field(None, description="Facts about it")


def responses(*errors: type[TaskyardError]) -> dict[int | str, dict[str, Any]]:
    """The error answers of an endpoint, for its OpenAPI description."""
    described: dict[int | str, dict[str, Any]] = {}
    possible: list[type[TaskyardError]] = [*errors, OriginRefused, ServiceUnavailable]
    for error in possible:
        known = described.get(error.http_status)
        text = (error.__doc__ or "").split("\n")[0].split("; ")[0].rstrip(".")
        described[error.http_status] = {
            "model": ErrorBody,
            "description": f"{known['description']}; {text}" if known else text,
        }
    return described


def refuse_with(**fields: Any) -> Any:
    """A dependency that adds fields to every error body of its route, where the contract's readers want them."""

    async def remember(request: Request) -> None:
        request.state.refusal = fields

    return remember


async def _known(request: Request, error: TaskyardError) -> JSONResponse:
    if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.warning("request failed", path=_path(request), code=error.code, message=error.message)
    return _answer(request, error.http_status, error.code, error.message, error.details)


async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    faults = as_details(
        [
            Fault(
                ".".join(str(part) for part in item["loc"][1:]) or str(item["loc"][0]),
                item["msg"].removeprefix("Value error, "),
                item["type"],
            )
            for item in error.errors()
        ]
    )
    refused = InvalidBody if any(item["loc"][0] == "body" for item in error.errors()) else InvalidParameter
    return _answer(request, refused.http_status, refused.code, sentence(faults), {"errors": faults})


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    status = error.status_code
    code = _CODES.get(status, HTTPStatus(status).phrase.lower().replace(" ", "_"))
    headers = dict(error.headers or {})
    if status == HTTPStatus.NOT_FOUND:
        message = f"There is nothing at {_path(request)}; /docs lists what there is."
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": ", ".join(methods_of(request.app.routes, request.scope))}
        message = f"{request.method[:_LONGEST_METHOD]} does not work on {_path(request)}; allowed: {headers['Allow']}."
    elif status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        message = "The body is too large; 2 MiB are taken at most."
    else:
        message = str(error.detail)
    return _answer(request, status, code, message, {}, headers)


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    _log.error("unforeseen failure", path=_path(request), exc_info=error)
    message = "Taskyard failed at this; the server's log has the cause."
    return _answer(request, 500, _CODES[500], message, {})


ANSWERS = Answers(known=_known, invalid_request=_invalid_request, http=_http, unforeseen=_unforeseen)


def _path(request: Request) -> str:
    """The path that was asked for, as it may be shown; the framework's own way of telling it fails on some hosts."""
    path = without_credentials(str(request.scope["path"]))
    return path if len(path) <= _LONGEST_PATH else path[:_LONGEST_PATH] + "…"


def _answer(
    request: Request,
    status: int,
    code: str,
    message: str,
    details: dict[str, Any],
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body: dict[str, Any] = {"error": code, "message": message}
    if details:
        body["details"] = details
    body |= {key: details[key] for key in _ALSO_ON_TOP if key in details}
    body |= getattr(request.state, "refusal", {})
    headers = headers or {}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(_RETRY_AFTER_SECONDS)
    if "retry_after_seconds" in details:
        headers["Retry-After"] = str(details["retry_after_seconds"])
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and "size_bytes" in details:
        headers["Content-Range"] = f"bytes */{details['size_bytes']}"
    return JSONResponse(body, status_code=status, headers=headers)
