"""How the routes of this dialect enter a run's machine: their WebSockets, tied to its host's."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import WebSocket

from api.deps import Services
from api.http.origins import check_origin
from api.http.rates import address
from api.machines.hosts import Params
from api.machines.relay import refuse, relay
from foundation.errors import TaskyardError
from foundation.service.tokens import Purpose


async def enter(
    socket: WebSocket,
    services: Services,
    task_id: str,
    purpose: Purpose,
    parts: Sequence[str],
    *,
    params: Params = None,
    subprotocols: Sequence[str] = (),
) -> None:
    """Tie the client's WebSocket to ``parts`` of the path of the run's machine, or end it with the error.

    The pages of other origins are refused, and who has too many streams.
    """
    try:
        check_origin(socket, services.settings)
        find = services.machines.finder(task_id)
        with services.rates.stream(address(socket)), services.metrics.tied.track_inprogress():
            await relay(socket, services.hosts, find, purpose, parts, params=params, subprotocols=subprotocols)
    except TaskyardError as error:
        await refuse(socket, error)
