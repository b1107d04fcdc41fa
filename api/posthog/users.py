"""Who asks: this dialect's user, of whom nothing is known but the key."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from fastapi import APIRouter

from api.posthog.lookup import GrantOf

router = APIRouter(prefix="/api/users", tags=["users"])

_ID_DIGITS = 8


def user(holder: str) -> dict[str, Any]:
    """The user that has a key, whose ``holder`` the core knows."""
    uuid = str(uuid5(NAMESPACE_URL, f"taskyard:key:{holder}"))
    return {
        "id": int(uuid.replace("-", "")[:_ID_DIGITS], 16) >> 1,
        "uuid": uuid,
        "distinct_id": uuid,
        "first_name": "",
        "last_name": "",
        "email": "",
    }


@router.get("/@me", summary="The user of the key")
async def me(grant: GrantOf) -> dict[str, Any]:
    """Ids that stay the same for the same key."""
    return user(grant.holder)
