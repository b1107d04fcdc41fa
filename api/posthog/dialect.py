"""The task-runs dialect as one application: its routes and its error bodies."""

from __future__ import annotations

from api.deps import Dialect, Services
from api.http.methods import HeadOfGet
from api.posthog import artifacts, environments, errors, tasks, tokens, told, users
from api.posthog.events import routes as events
from api.posthog.events.table import LogTables
from api.posthog.forms import MOST_BYTES
from api.posthog.methods import Options
from api.posthog.paths import OptionalSlash
from api.posthog.runs import commands
from api.posthog.runs import routes as runs


class TaskRuns(Dialect):
    """The application, and what it keeps for itself: the tables of the logs that were asked for."""

    log_tables: LogTables


def make_posthog(services: Services) -> Dialect:
    """The application over these services."""
    app = TaskRuns(
        services,
        errors.ANSWERS,
        most_body_bytes=MOST_BYTES,
        title="Taskyard: task runs",
        openapi_url="/api/projects/openapi.json",
        redirect_slashes=False,
    )
    app.log_tables = LogTables(services.bucket)
    app.add_middleware(Options, routes=app.routes)
    app.add_middleware(HeadOfGet)
    # The outermost, so that whatever reads the path reads it without its last slash.
    app.add_middleware(OptionalSlash)
    for part in (users, tasks, runs, commands, told, events, artifacts, tokens, environments):
        app.include_router(part.router)
    return app
