"""Routes for what clients tell of a run: ``append_log``, ``set_output``, ``event_stream`` and its token."""

from __future__ import annotations

from fastapi import APIRouter

from api.posthog.paths import RUN

router = APIRouter(prefix=RUN, tags=["runs"])
