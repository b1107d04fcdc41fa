"""The REST service put together: services, the dialects that speak of them, and what holds for all dialects alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from fastapi import Request, Response
from starlette._utils import get_route_path
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from api.deps import Dialect, Services
from api.environments.core import Environments
from api.http import downloads
from api.http.access import Access
from api.http.metrics import Metrics, RequestTimes
from api.http.origins import OwnOrigins
from api.http.rates import RateHeaders, Rates
from api.http.tokens import TokenKeys
from api.machines.hosts import Hosts
from api.machines.ports.by_name import NamedPorts
from api.native.dialect import make_native
from api.parents.core import Parents
from api.parents.recorded import PARENT_TASKS
from api.posthog.dialect import make_posthog
from api.posthog.paths import BASES as POSTHOG_BASES
from api.posthog.tokens import connection_reader
from api.posthog.told import stream_reader
from api.runs.acceptance import Submissions
from api.runs.admission import Admission
from api.runs.core import Core
from api.runs.events import RunEvents
from api.runs.live_log import HostedLogs
from api.runs.machine import RunMachines
from api.runs.recorded import TASK_RUNS
from api.runs.uploads import Uploads
from api.runs.watching.looks import RunWatches
from api.temporal.client import Engine
from api.temporal.index import RunIndex
from api.temporal.visibility import TemporalVisibility
from api.told.appending import ClientLogs
from api.told.core import TellingLooks, ToldRuns
from api.told.recorded import TOLD_RUNS
from foundation.errors import EngineUnavailable, HostNotReady
from foundation.settings import Settings
from storage.bucket import Bucket
from storage.follower import RunLogFollowers
from storage.uploads.presigned import Presigner
from workflows.runs.messages import TaskStatus

Table = Sequence[tuple[Sequence[str], Callable[[Services], Dialect]]]

# The dialects, and the paths below which each of them answers. The first that fits counts; the last one has the rest.
DIALECTS: Table = ((POSTHOG_BASES, make_posthog), (("/",), make_native))

# What pages of allowed origins may read of answers beside their bodies.
_EXPOSED = (
    *("X-Total-Count", "X-Filtered-Count", "X-Matching-Count", "X-Has-More", "Server-Timing", "Retry-After"),
    "X-Checksum-SHA256",
)


def create_app(settings: Settings, table: Table = DIALECTS) -> Service:
    """The application. It starts whether or not Temporal and the bucket are there, and says 503 while they are not."""
    return Service(_make_services(settings), table)


class Dialects:
    """Hands each request to the dialect whose path it is. The path stays whole: a dialect's base paths may be many."""

    def __init__(self, services: Services, table: Table) -> None:
        self._mounted = [(bases, make(services)) for bases, make in table]

    def all(self) -> list[Dialect]:
        return [dialect for _, dialect in self._mounted]

    def of(self, scope: Scope) -> Dialect:
        """The dialect of a request's path, which is read as routes read it: without what a proxy has put before it."""
        path = get_route_path(scope)
        for bases, dialect in self._mounted:
            if any(f"{path}/".startswith(f"{base.rstrip('/')}/") for base in bases):
                return dialect
        return self.all()[-1]

    async def answer(self, request: Request, error: Exception) -> Response:
        """The answer to an error that no dialect has answered, as the dialect of the request's path tells it."""
        return await self.of(request.scope).answer(request, error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.of(scope)(scope, receive, send)


class Service(Starlette):
    """One server process: what holds for every dialect stands around all of them, once."""

    def __init__(self, services: Services, table: Table) -> None:
        self.services = services
        self.dialects = Dialects(services, table)
        settings = services.settings
        super().__init__(
            lifespan=_lifespan,
            exception_handlers={Exception: self.dialects.answer},
            # From the outermost to the innermost.
            middleware=[
                Middleware(NamedPorts, settings=settings, hosts=services.hosts, finder=services.machines.finder),
                Middleware(
                    CORSMiddleware,
                    allow_origins=settings.allowed_origins,
                    allow_methods=["*"],
                    allow_headers=["*"],
                    expose_headers=_EXPOSED,
                ),
                Middleware(RequestTimes, metrics=services.metrics),
                Middleware(OwnOrigins, settings=settings, answer=self.dialects.answer),
                Middleware(RateHeaders),
            ],
        )
        self.router.default = self.dialects

    def prepare(self) -> None:
        """Put the dialects' routes together, which the framework does when they are first needed: a long moment."""
        for dialect in self.dialects.all():
            dialect.openapi()


@asynccontextmanager
async def _lifespan(service: Service) -> AsyncIterator[None]:
    filling = asyncio.create_task(_fill(service.services.index))
    # That is no work for the event loop.
    await asyncio.to_thread(service.prepare)
    with suppress(HostNotReady):
        # Made or read before somebody waits for it; who needs one hears what is wrong.
        await asyncio.to_thread(service.services.tokens.public_keys)
    yield
    filling.cancel()
    await asyncio.gather(filling, return_exceptions=True)
    await service.services.told.close()
    await service.services.index.close()
    await service.services.parents.close()
    await service.services.hosts.close()


async def _fill(index: RunIndex[TaskStatus]) -> None:
    """Read what there is before somebody asks for it."""
    with suppress(EngineUnavailable):
        await index.look()


def _make_services(settings: Settings) -> Services:
    bucket = Bucket(settings)
    engine = Engine(settings)
    metrics = Metrics(lambda: sum(followers.followed.values()))
    index = RunIndex(TemporalVisibility(engine, TASK_RUNS), TASK_RUNS, metrics.take_change)
    environments = Environments(settings, bucket)
    core = Core(engine, bucket, index, Admission(bucket, environments))
    parents = Parents(engine, bucket, RunIndex(TemporalVisibility(engine, PARENT_TASKS), PARENT_TASKS))
    machines, hosts = RunMachines(core), Hosts(settings, bucket)
    told_index = RunIndex(TemporalVisibility(engine, TOLD_RUNS), TOLD_RUNS)
    told = ToldRuns(engine, bucket, core, told_index, ClientLogs(bucket), hosts)
    tokens = TokenKeys(settings)
    followers = RunLogFollowers(bucket, HostedLogs(machines, hosts))
    watches = RunWatches(core)
    return Services(
        settings=settings,
        bucket=bucket,
        metrics=metrics,
        rates=Rates(settings.rate_limits),
        readers=downloads.readers(),
        index=index,
        core=core,
        told=told,
        submissions=Submissions(),
        uploads=Uploads(bucket, Presigner(settings)),
        tokens=tokens,
        followers=followers,
        watches=watches,
        told_watches=RunWatches(TellingLooks(told)),
        events=RunEvents(core, bucket, followers, watches),
        hosts=hosts,
        machines=machines,
        access=Access(settings, connection_reader(tokens), stream_reader(tokens)),
        parents=parents,
        environments=environments,
    )
