"""The REST service put together: one application over one core, one router for each dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from api.http import downloads
from api.http.limits import BodyLimit
from api.http.metrics import Metrics, RequestTimes
from api.http.origins import OwnOrigins
from api.http.rates import RateHeaders, Rates
from api.native import errors, health, stream, tasks
from api.runs.acceptance import MAX_BODY_BYTES, Submissions
from api.runs.core import Core
from api.runs.events import RunEvents
from api.runs.watch import RunWatches
from api.temporal.client import Engine
from api.temporal.index import RunIndex
from api.temporal.visibility import TemporalVisibility
from foundation.errors import EngineUnavailable
from foundation.settings import Settings
from storage.bucket import Bucket
from storage.follower import RunLogFollowers


def create_app(settings: Settings) -> FastAPI:
    """The application. It starts whether or not Temporal and the bucket are there, and says 503 while they are not."""
    bucket = Bucket(settings)
    engine = Engine(settings)
    followers = RunLogFollowers(bucket)
    metrics = Metrics(lambda: sum(followers.followed.values()))
    index = RunIndex(TemporalVisibility(engine), metrics.take_change)
    core = Core(engine, bucket, index)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        filling = asyncio.create_task(_fill(index))
        # The framework puts its routes together when they are first needed; that is no work for the event loop.
        await asyncio.to_thread(app.openapi)
        yield
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
        await index.close()

    app = FastAPIOffline(
        redoc_url=None,
        lifespan=lifespan,
        title="Taskyard",
        version=health.VERSION,
        summary="Runs coding-agent tasks to the end, each in a throw-away virtual machine",
    )
    app.state.settings = settings
    app.state.core = core
    app.state.index = index
    app.state.submissions = Submissions()
    app.state.bucket = bucket
    app.state.followers = followers
    app.state.metrics = metrics
    app.state.readers = downloads.readers()
    app.state.rates = Rates(settings.rate_limits)
    app.state.events = RunEvents(core, bucket, followers, RunWatches(core))
    app.add_middleware(BodyLimit, most_bytes=MAX_BODY_BYTES)
    app.add_middleware(RateHeaders)
    app.add_middleware(OwnOrigins, settings=settings)
    app.add_middleware(RequestTimes, metrics=metrics)
    app.add_middleware(CORSMiddleware, allow_origins=settings.allowed_origins, allow_methods=["*"], allow_headers=["*"])
    errors.install(app)
    app.include_router(stream.router)
    app.include_router(tasks.router)
    app.include_router(health.router)
    return app


async def _fill(index: RunIndex) -> None:
    """Read what there is before somebody asks for it."""
    with suppress(EngineUnavailable):
        await index.look()
