"""OPTIONS: which methods a path of this dialect takes, what it is for, and which types it reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.methods import methods_of, route_of

_JSON = "application/json"


class Options:
    """Answers OPTIONS for every path that there is, whoever asks: it tells what the documentation tells."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = methods_of(self._routes, scope) if scope["type"] == "http" and scope["method"] == "OPTIONS" else []
        if not methods:
            await self._app(scope, receive, send)
            return
        route = route_of(self._routes, scope, "GET" if "GET" in methods else methods[0])
        answer = JSONResponse(_described(route), headers={"Allow": ", ".join(allowed(methods))})
        await answer(scope, receive, send)


def allowed(methods: Sequence[str]) -> list[str]:
    """The methods that a path of this dialect takes, with those that its routes do not name."""
    return sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])})


def _described(route: BaseRoute | None) -> dict[str, Any]:
    known = route if isinstance(route, APIRoute) else None
    responses = known.responses if known else {}
    return {
        "name": (known and known.summary) or "",
        "description": (known and known.description) or "",
        "renders": list(responses.get(200, {}).get("content", {_JSON: None})),
        "parses": [_JSON],
    }
