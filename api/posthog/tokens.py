"""Routes for tokens of one run: ``connection_token``, and the public keys that they are checked with."""

from __future__ import annotations

from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Response

from api.deps import ServicesOf
from api.http.access import Grant, TokenReader
from api.http.tokens import TokenKeys, looks_like_one
from api.posthog.lookup import GrantOf, RunOf
from api.posthog.paths import PUBLIC_KEYS, RUN
from api.posthog.users import user
from foundation.errors import Unauthorized

#: What a connection token opens of its run: routes that have ``opened_by_token`` of one of these.
CONNECTION = "connection"
STREAM = "stream"
CONNECTION_SECONDS = 24 * 3600

_AUDIENCE = "posthog:sandbox_connection"
_KEYS_AGE_SECONDS = 300

router = APIRouter(tags=["runs"])


@router.get(f"{RUN}/connection_token", summary="A token for the run's stream and commands")
async def connection_token(run: RunOf, grant: GrantOf, services: ServicesOf) -> dict[str, str]:
    """A token that opens the stream and the commands of this run, and nothing else, for 24 hours."""
    owner = user(grant.holder)
    claims = {
        "run_id": run.id,
        "task_id": run.parent.id,
        "team_id": int(run.parent.project),
        "user_id": owner["id"],
        "distinct_id": owner["distinct_id"],
    }
    return {"token": await to_thread.run_sync(services.tokens.sign, _AUDIENCE, claims, CONNECTION_SECONDS)}


@router.get(PUBLIC_KEYS, summary="The keys that tokens are checked with")
async def public_keys(services: ServicesOf, response: Response) -> dict[str, Any]:
    """The public keys as a JSON Web Key Set; the first is the one that signs now. It takes no key to ask."""
    response.headers["Cache-Control"] = f"max-age={_KEYS_AGE_SECONDS}"
    return {"keys": await to_thread.run_sync(services.tokens.public_keys)}


def connection_reader(keys: TokenKeys) -> TokenReader:
    """Tells what a connection token opens. It raises HostNotReady when this server cannot tell."""

    def read(text: str) -> Grant | None:
        if not looks_like_one(text):
            return None
        try:
            claims = keys.check(_AUDIENCE, text)
        except Unauthorized:
            return None
        run, holder = claims.get("run_id"), claims.get("distinct_id")
        if not isinstance(run, str) or not isinstance(holder, str):
            return None
        return Grant(holder, run, frozenset({CONNECTION, STREAM}))

    return read
