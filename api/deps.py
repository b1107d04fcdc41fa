"""What the routes of every dialect stand on: the services that they ask for, and the application that holds these."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp

from api.environments.core import Environments
from api.http.access import Access
from api.http.limits import BodyLimit
from api.http.metrics import Metrics
from api.http.rates import Rates, count
from api.http.tokens import TokenKeys
from api.machines.hosts import Hosts
from api.parents.core import Parents
from api.runs.acceptance import Submissions
from api.runs.core import Core
from api.runs.events import RunEvents
from api.runs.machine import RunMachines
from api.runs.uploads import Uploads
from api.runs.watching.looks import RunWatches
from api.temporal.index import RunIndex
from api.told.core import ToldRuns
from foundation.errors import TaskyardError
from foundation.settings import RateKind, Settings
from storage.bucket import Bucket
from storage.follower import RunLogFollowers
from workflows.runs.messages import TaskStatus
from workflows.told.messages import LocalStatus

_E = TypeVar("_E", bound=Exception)
_Answer = Callable[[Request, _E], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class Services:
    """What one server process has, once, for all of its dialects."""

    settings: Settings
    bucket: Bucket
    metrics: Metrics
    rates: Rates
    # Threads that wait for the bucket while downloads are read from it.
    readers: CapacityLimiter
    index: RunIndex[TaskStatus]
    core: Core
    # Runs whose agents work elsewhere, and what clients tell of any run.
    told: ToldRuns
    submissions: Submissions
    uploads: Uploads
    tokens: TokenKeys
    followers: RunLogFollowers
    # Runs as they are watched, and the events of that.
    watches: RunWatches[TaskStatus]
    # The same with what clients tell of them, and of runs whose agents work elsewhere.
    told_watches: RunWatches[LocalStatus | TaskStatus]
    events: RunEvents
    # The VM hosts, and which of them has a run's machine.
    hosts: Hosts
    machines: RunMachines
    # Credentials, for the dialects that want some.
    access: Access
    parents: Parents
    environments: Environments


@dataclass(frozen=True)
class Answers:
    """How one dialect tells each kind of failure; none has a default, for the framework's would be another body."""

    known: _Answer[TaskyardError]
    invalid_request: _Answer[RequestValidationError]
    # No such path, no such method, and a body that is too large or has an encoding.
    http: _Answer[HTTPException]
    unforeseen: _Answer[Exception]


class Dialect(FastAPI):
    """The application of one dialect, whose ``answers`` put every failure below its paths into the dialect's own body.

    A body of more than ``most_body_bytes`` is not read, except at the paths that are ``streamed``. ``described`` is
    what its OpenAPI document says of it. It has no life of its own: nobody runs a ``lifespan``, ``on_startup`` or
    ``on_shutdown`` of a dialect or of its routers.
    """

    def __init__(
        self,
        services: Services,
        answers: Answers,
        *,
        most_body_bytes: int,
        streamed: re.Pattern[str] | None = None,
        **described: Any,
    ) -> None:
        super().__init__(
            docs_url=None,
            redoc_url=None,
            exception_handlers={
                TaskyardError: answers.known,
                RequestValidationError: answers.invalid_request,
                HTTPException: answers.http,
                ClientDisconnect: _left,
                Exception: answers.unforeseen,
            },
            **described,
        )
        self.services = services
        self.add_middleware(BodyLimit, most_bytes=most_body_bytes, streamed=streamed)

    async def answer(self, request: Request, error: Exception) -> Response:
        """What this dialect answers to an error that was raised around it, or that none of its handlers foresees."""
        handler = next(self.exception_handlers[kind] for kind in type(error).__mro__ if kind in self.exception_handlers)
        answer = handler(request, error)
        return await answer if isinstance(answer, Awaitable) else answer

    def build_middleware_stack(self) -> ASGIApp:
        """The framework's, without its outermost part: that one stands around all dialects once, and calls ``answer``.

        What no handler foresees passes everything that stands around the dialects, and is answered outside of it.
        """
        stack = super().build_middleware_stack()
        return stack.app if isinstance(stack, ServerErrorMiddleware) else stack


async def _left(request: Request, error: ClientDisconnect) -> Response:  # noqa: ARG001 -- the framework's signature
    """Whoever left before the body was whole reads no answer, and is no failure of the server's."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)


async def _services(connection: HTTPConnection) -> Services:
    dialect: Dialect = connection.app
    return dialect.services


ServicesOf = Annotated[Services, Depends(_services)]


async def _core(services: ServicesOf) -> Core:
    return services.core


CoreOf = Annotated[Core, Depends(_core)]


def limited(kind: RateKind) -> Any:
    """A dependency that counts the requests of its route, and refuses those that are too many."""

    async def counted(request: Request, services: ServicesOf) -> None:
        count(request, kind, services.rates)

    return Depends(counted)
