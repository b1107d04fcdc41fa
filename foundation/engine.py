"""The connection to Temporal, made in the same way by every process."""

from __future__ import annotations

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RetryConfig, RPCError, RPCStatusCode

from foundation.settings import Settings


async def connect_engine(settings: Settings, *, lazy: bool = False, retry: RetryConfig | None = None) -> Client:
    """A client of the Temporal that the settings name. A lazy one connects with its first call."""
    key = settings.temporal_api_key
    return await Client.connect(
        settings.temporal_target,
        namespace=settings.temporal_namespace,
        api_key=key.get_secret_value() if key else None,
        tls=settings.temporal_tls or None,
        data_converter=pydantic_data_converter,
        retry_config=retry,
        lazy=lazy,
    )


def lacks_namespace(error: RPCError) -> bool:
    """Whether Temporal answered that it has not even the namespace, which says nothing of a run."""
    return error.status is RPCStatusCode.NOT_FOUND and "amespace" in error.message
