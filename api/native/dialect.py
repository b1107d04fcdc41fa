"""The Task Orchestration dialect as one application: its routes, its error bodies, and the pages that document it."""

from __future__ import annotations

import re

from fastapi_offline import FastAPIOffline

from api.deps import Dialect, Services
from api.native import again, errors, health, ports, steering, stream, tasks, views
from api.native.bodies import MAX_BODY_BYTES
from api.native.machines import exec as commands
from api.native.machines import files, processes

_TITLE = "Taskyard"
# What goes on into a machine.
_STREAMED = re.compile(rf"{views.BASE}/[^/]+/(?:files/(?:content|archive)|ports/.*|processes/[^/]+/stdin)", re.DOTALL)


def make_native(services: Services) -> Dialect:
    """The application over these services."""
    app = Dialect(
        services,
        errors.ANSWERS,
        most_body_bytes=MAX_BODY_BYTES,
        streamed=_STREAMED,
        title=_TITLE,
        version=health.VERSION,
        summary="Runs coding-agent tasks to the end, each in a throw-away virtual machine",
    )
    # Of this application the pages alone are used: they show the description of the one that they are part of.
    app.include_router(FastAPIOffline(redoc_url=None, title=_TITLE).router)
    app.include_router(stream.router)
    app.include_router(ports.router)
    app.include_router(tasks.router)
    app.include_router(steering.router)
    app.include_router(again.router)
    app.include_router(commands.router)
    app.include_router(processes.router)
    app.include_router(files.router)
    app.include_router(health.router)
    return app
