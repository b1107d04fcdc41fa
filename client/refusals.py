"""What a server refuses, and servers that do not answer, as the errors of ``foundation.errors``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus

import httpx

from client.tasks.calls import DEFAULT_SERVER
from client.tasks.replies import Task
from foundation.errors import (
    Conflict,
    Forbidden,
    ForeignServer,
    InvalidManifest,
    NotFound,
    ServiceUnavailable,
    TaskyardError,
    TimedOut,
    Unauthorized,
    error_of,
)
from foundation.urls import without_credentials

_CURE = "Name the right one with --server or TASKYARD_SERVER."

# For answers that are not the server's own: something stands before it.
_BY_STATUS: dict[int, type[TaskyardError]] = {
    HTTPStatus.UNAUTHORIZED: Unauthorized,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.BAD_GATEWAY: ServiceUnavailable,
    HTTPStatus.SERVICE_UNAVAILABLE: ServiceUnavailable,
    HTTPStatus.GATEWAY_TIMEOUT: ServiceUnavailable,
}


def refusal(server: str, status: int, headers: Mapping[str, str], body: bytes) -> TaskyardError:
    """The error of an answer that is none of success: by its code, else by its status."""
    by_status = _BY_STATUS.get(status, ForeignServer)
    try:
        answer = json.loads(body)
        code, message = str(answer["error"]), str(answer["message"])
        details = answer.get("details")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST and "location" in headers:
            where = without_credentials(headers["location"])
            return by_status(f"The server at {server} is elsewhere: it names {where}. Use that server's own address.")
        return by_status(
            f"The server at {server} answered with status {status}, and not as Taskyard does: it is another server, or "
            f"one that stands before it. {_CURE}"
        )
    known = error_of(code) or _BY_STATUS.get(status, TaskyardError)
    # Details of another version may be named as the error's own parameters are.
    facts = {str(key): value for key, value in details.items()} if isinstance(details, dict) else {}
    for name in ("self", "message"):
        facts.pop(name, None)
    return known(message, **facts)


@contextmanager
def understood(server: str) -> Iterator[None]:
    """Raise ForeignServer for an answer of success that has another form than Taskyard's."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ForeignServer(f"What answers at {server} is not Taskyard, or another version of it. {_CURE}") from error


@contextmanager
def reachable(server: str) -> Iterator[None]:
    """Raise ServiceUnavailable for a server that does not answer, and a sentence for what is no URL at all."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise TaskyardError(f"'{server}' is not the URL of a server; write one such as {DEFAULT_SERVER}.") from error
    except (httpx.RequestError, httpx.StreamError) as error:
        raise ServiceUnavailable(
            f"The server at {server} does not answer ({type(error).__name__}); start it with 'sandbox up', "
            "or name another with --server or TASKYARD_SERVER."
        ) from error


def still_going(task: Task) -> TimedOut:
    """The error of a wait for a run that took too long."""
    return TimedOut(f"Task '{task.id}' is still {task.state}; it goes on, and can be waited for again.")


def faults(error: TaskyardError) -> list[dict[str, str]]:
    """Every fault of a refused manifest, as ``{field, message, validation}``."""
    found: list[dict[str, str]] = error.details.get("errors", []) if isinstance(error, InvalidManifest) else []
    return found
