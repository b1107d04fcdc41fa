"""Routes for the events of a run: ``stream``, ``session_logs`` and ``logs``."""

from __future__ import annotations

from fastapi import APIRouter

from api.posthog.paths import RUN

router = APIRouter(prefix=RUN, tags=["runs"])
