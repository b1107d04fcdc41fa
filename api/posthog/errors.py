"""Every failure in one of this dialect's two bodies: ``{type, code, detail, attr}``, or a view's ``{error}``.

The first is for what is wrong with a request as such: its key, its path, its body, its parameters. The second is for
what a view refuses, with our code beside it. A client reads ``error``, then ``detail``.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from api.deps import Answers
from api.http.methods import methods_of
from api.posthog.methods import allowed
from foundation.errors import (
    ArtifactNotFound,
    Forbidden,
    InvalidBody,
    InvalidManifest,
    InvalidParameter,
    NotFound,
    OriginRefused,
    PayloadTooLarge,
    RateLimitExceeded,
    TaskyardError,
    Unauthorized,
    UnsupportedMediaType,
)
from foundation.faults import MOST_FAULTS, Fault, as_details

_log = structlog.get_logger()

_RETRY_AFTER_SECONDS = 2
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="api"'}

# What is told in the first body, and its type and code there. An error is told as the nearest of its classes here.
_FRAMEWORK: Mapping[type[TaskyardError], tuple[str, str]] = {
    InvalidBody: ("validation_error", "invalid_input"),
    InvalidParameter: ("validation_error", "invalid_input"),
    InvalidManifest: ("validation_error", "invalid_input"),
    UnsupportedMediaType: ("invalid_request", "unsupported_media_type"),
    PayloadTooLarge: ("invalid_request", "payload_too_large"),
    Unauthorized: ("authentication_error", "not_authenticated"),
    Forbidden: ("authentication_error", "permission_denied"),
    OriginRefused: ("authentication_error", "permission_denied"),
    NotFound: ("invalid_request", "not_found"),
    RateLimitExceeded: ("throttled_error", "throttled"),
}
# Of these, which a view raises for what it was asked, the second body is told.
_OF_VIEWS = (ArtifactNotFound,)
# Where this dialect has another status for one of ours.
_STATUSES: Mapping[type[TaskyardError], int] = {InvalidBody: 400}
# Facts that clients look for in the body itself.
_ON_TOP = ("missing_artifact_ids", "last_accepted_seq")

_HTTP = {
    400: ("invalid_request", "parse_error", "Malformed request."),
    404: ("invalid_request", "not_found", "Not found."),
    405: ("invalid_request", "method_not_allowed", 'Method "{method}" not allowed.'),
    406: ("invalid_request", "not_acceptable", "Could not satisfy the request Accept header."),
    413: ("invalid_request", "payload_too_large", "The body is too large."),
}
# What a rule of ours is called in the frameworks that clients know.
_RULES = {"missing": "required", "string_too_long": "max_length", "string_too_short": "blank", "too_short": "empty"}


def told_as_view(*errors: type[TaskyardError], **statuses: int) -> Any:
    """A dependency of a route: it tells these errors in the second body, and errors by their codes as these statuses.

    ``told_as_view(InvalidParameter, machine_unavailable=400)``.
    """

    async def remember(request: Request) -> None:
        request.state.of_views = errors
        request.state.statuses = statuses

    return remember


async def _known(request: Request, error: TaskyardError) -> JSONResponse:
    statuses = getattr(request.state, "statuses", {})
    status = statuses.get(error.code) or _nearest(error, _STATUSES) or error.http_status
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.warning("request failed", path=request.scope["path"], code=error.code, message=error.message)
    headers = dict(_CHALLENGE) if status == HTTPStatus.UNAUTHORIZED else {}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(_RETRY_AFTER_SECONDS)
    if "retry_after_seconds" in error.details:
        headers["Retry-After"] = str(error.details["retry_after_seconds"])
    known = _nearest(error, _FRAMEWORK)
    on_top = {key: error.details[key] for key in _ON_TOP if key in error.details}
    of_views = (*_OF_VIEWS, *getattr(request.state, "of_views", ()))
    if known is None or error.code in statuses or isinstance(error, of_views):
        return JSONResponse({"error": error.message, "code": error.code} | on_top, status, headers)
    kind, code = known
    detail, attr = error.message, error.details.get("field")
    if isinstance(error, NotFound):
        detail = error.message or "Not found."
    elif faults := error.details.get("errors"):
        # The first fault alone, as clients know it.
        detail, attr = faults[0]["message"], faults[0]["field"] or None
        code = _RULES.get(faults[0]["validation"], faults[0]["validation"])
    return _framework(status, kind, code, detail, attr, headers, on_top)


async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    found = error.errors()[:MOST_FAULTS]
    faults = [
        Fault(".".join(str(part) for part in item["loc"][1:]), item["msg"].removeprefix("Value error, "), item["type"])
        for item in found
    ]
    return await _known(request, InvalidBody("", errors=as_details(faults)))


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    kind, code, detail = _HTTP.get(error.status_code, ("invalid_request", "error", str(error.detail)))
    # The method is whatever the client wrote.
    detail = detail.replace("{method}", request.method[:20])
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": ", ".join(allowed(methods_of(request.app.routes, request.scope)))}
    return _framework(error.status_code, kind, code, detail, None, headers, {})


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    _log.error("unforeseen failure", path=request.scope["path"], exc_info=error)
    return _framework(500, "server_error", "error", "A server error occurred; the server's log has it.", None, {}, {})


def _nearest(error: TaskyardError, table: Mapping[type[TaskyardError], Any]) -> Any:
    return next((table[kind] for kind in type(error).__mro__ if kind in table), None)


def _framework(
    status: int,
    kind: str,
    code: str,
    detail: str,
    attr: str | None,
    headers: dict[str, str],
    more: dict[str, Any],
) -> JSONResponse:
    # A place in nested data: `artifacts[0].name` is `artifacts__0__name`.
    place = attr.replace("[", ".").replace("]", "").replace(".", "__") if attr else None
    return JSONResponse({"type": kind, "code": code, "detail": detail, "attr": place} | more, status, headers)


ANSWERS = Answers(known=_known, invalid_request=_invalid_request, http=_http, unforeseen=_unforeseen)
