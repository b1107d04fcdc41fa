"""What a server refuses, and servers that do not answer, as the errors of ``foundation.errors``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import httpx

from client.calls import DEFAULT_SERVER
from client.replies import Task
from foundation.errors import (
    Conflict,
    Forbidden,
    InvalidManifest,
    NotFound,
    ServiceUnavailable,
    TaskyardError,
    TimedOut,
    Unauthorized,
)

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


def refusal(server: str, status: int, body: bytes) -> TaskyardError:
    """The error of an answer that is none of success: by its code, else by its status."""
    by_status = _BY_STATUS.get(status, TaskyardError)
    try:
        told = json.loads(body)
        code, message = str(told["error"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        return by_status(f"The server at {server} answered with status {status}.")
    details = told.get("details")
    return _errors_by_code().get(code, by_status)(message, **(details if isinstance(details, dict) else {}))


@contextmanager
def reachable(server: str) -> Iterator[None]:
    """Raise ServiceUnavailable for a server that does not answer, and a sentence for what is no URL at all."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise TaskyardError(f"'{server}' is not the URL of a server; write one such as {DEFAULT_SERVER}.") from error
    except httpx.TransportError as error:
        raise ServiceUnavailable(
            f"The server at {server} does not answer ({type(error).__name__}); start it with 'sandbox up', "
            "or name another with --server or TASKYARD_SERVER."
        ) from error


def still_going(task: Task) -> TimedOut:
    """What is told when waiting for a run takes too long."""
    return TimedOut(f"Task '{task.id}' is still {task.state}; it goes on, and can be waited for again.")


def faults(error: TaskyardError) -> list[dict[str, str]]:
    """Every fault of a refused manifest, as ``{field, message, validation}``."""
    found: list[dict[str, str]] = error.details.get("errors", []) if isinstance(error, InvalidManifest) else []
    return found


def _errors_by_code() -> dict[str, type[TaskyardError]]:
    known: dict[str, type[TaskyardError]] = {}
    pending: list[type[TaskyardError]] = [TaskyardError]
    while pending:
        error = pending.pop()
        known[error.code] = error
        pending += error.__subclasses__()
    return known
