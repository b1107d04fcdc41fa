"""Routes for tokens for one run: ``connection_token``, and the key that they are checked with."""

from __future__ import annotations

from fastapi import APIRouter

from api.posthog.paths import RUN

router = APIRouter(prefix=RUN, tags=["runs"])
