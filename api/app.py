"""The REST service put together: one application over one core, one router for each dialect."""

from __future__ import annotations

from fastapi import FastAPI

from api import errors, health, tasks
from api.core import Core
from api.engine import Engine
from api.limits import BodyLimit
from api.metrics import Metrics, RequestTimes
from api.submission import MAX_BODY_BYTES
from foundation.settings import Settings
from storage.bucket import Bucket
from storage.follower import RunLogFollowers


def create_app(settings: Settings) -> FastAPI:
    """The application. It starts whether or not Temporal and the bucket are there, and says 503 while they are not."""
    bucket = Bucket(settings)
    core = Core(Engine(settings), bucket)
    followers = RunLogFollowers(bucket)
    metrics = Metrics(lambda: sum(followers.followed.values()))

    app = FastAPI(
        title="Taskyard",
        version=health.VERSION,
        summary="Runs coding-agent tasks to the end, each in a throw-away virtual machine",
    )
    app.state.core = core
    app.state.bucket = bucket
    app.state.followers = followers
    app.state.metrics = metrics
    app.add_middleware(BodyLimit, most_bytes=MAX_BODY_BYTES)
    app.add_middleware(RequestTimes, metrics=metrics)
    errors.install(app)
    app.include_router(tasks.router)
    app.include_router(health.router)
    return app
