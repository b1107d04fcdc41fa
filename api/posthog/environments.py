"""Routes for sandbox environments of a project: variables and network level of its runs."""

from __future__ import annotations

from fastapi import APIRouter

from api.posthog.paths import PROJECT

router = APIRouter(prefix=PROJECT, tags=["environments"])
