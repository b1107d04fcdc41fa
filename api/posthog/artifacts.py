"""Routes for artifacts of a run: what clients upload, what was collected, and URLs for both."""

from __future__ import annotations

from fastapi import APIRouter

from api.posthog.paths import RUN

router = APIRouter(prefix=RUN, tags=["runs"])
