"""The paths of this dialect, none of which needs its last slash."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

PROJECT = "/api/projects/{project_id}"
TASKS = f"{PROJECT}/tasks"
TASK = f"{TASKS}/{{task_id}}"
RUNS = f"{TASK}/runs"
RUN = f"{RUNS}/{{run_id}}"
PUBLIC_KEYS = "/.well-known/jwks.json"

#: The paths below which this dialect answers.
BASES = ("/api/projects", "/api/users", PUBLIC_KEYS)


class OptionalSlash:
    """Takes the last slash off each path: routes are written without one, and clients write either."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            # In place: what stands around reads from it which route there was.
            scope["path"] = scope["path"][:-1]
        await self._app(scope, receive, send)
