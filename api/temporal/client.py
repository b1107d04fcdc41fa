"""Temporal as the API uses it: connected at first use, and every failure to reach it an EngineUnavailable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from temporalio.client import Client
from temporalio.service import RetryConfig, RPCError, RPCStatusCode

from foundation.engine import connect_engine, lacks_namespace
from foundation.errors import EngineUnavailable
from foundation.settings import Settings

RPC_LIMIT = timedelta(seconds=5)

# Enough to step over a dropped connection; longer outages are the caller's to know of.
_RETRY = RetryConfig(initial_interval_millis=100, max_elapsed_time_millis=2000, max_retries=4)

_NO_ANSWER = frozenset(
    {
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.RESOURCE_EXHAUSTED,
        RPCStatusCode.ABORTED,
        RPCStatusCode.UNKNOWN,
    }
)
_DENIED = frozenset({RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED})


class Engine:
    """One connection to Temporal, made when it is first needed and remade by itself when it breaks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None

    @property
    def task_queue(self) -> str:
        return self._settings.task_queue

    async def client(self) -> Client:
        """The client. It connects with its first call, so this never waits and never fails for lack of a server."""
        if self._client is None:
            self._client = await connect_engine(self._settings, lazy=True, retry=_RETRY)
        return self._client

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn the ways in which Temporal is not there into EngineUnavailable; let its answers about a run through."""
        try:
            yield
        except RPCError as error:
            if error.status in _DENIED:
                raise EngineUnavailable(
                    f"Temporal at {self._settings.temporal_target} refused the server's credentials; "
                    "check TASKYARD_TEMPORAL_API_KEY and TASKYARD_TEMPORAL_TLS."
                ) from error
            if lacks_namespace(error):
                raise EngineUnavailable(
                    f"Temporal at {self._settings.temporal_target} has no namespace "
                    f"'{self._settings.temporal_namespace}'; create it, or set TASKYARD_TEMPORAL_NAMESPACE."
                ) from error
            if error.status in _NO_ANSWER:
                raise self._unreachable() from error
            raise
        except RuntimeError as error:
            # The lazy connection reports a refused or failed connect as a bare RuntimeError.
            if "client connect" not in str(error):
                raise
            raise self._unreachable() from error

    def _unreachable(self) -> EngineUnavailable:
        hint = (
            "start the stack with 'sandbox up'"
            if self._settings.embedded_temporal
            else "check TASKYARD_TEMPORAL_ADDRESS"
        )
        return EngineUnavailable(f"Temporal at {self._settings.temporal_target} does not answer; {hint}.")


def is_unknown(error: RPCError) -> bool:
    """Whether Temporal answered that there is no such run, or that it takes nothing more since it has ended."""
    return error.status is RPCStatusCode.NOT_FOUND
