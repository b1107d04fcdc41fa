"""The client of the model provider's API: its limits, its proxy, and whom it trusts."""

from __future__ import annotations

import httpx

from foundation.errors import HostNotReady
from foundation.proxies import proxy_for
from foundation.settings import Settings
from foundation.urls import without_credentials

# The provider may think for minutes before the first byte; the client itself gives up after ten.
TIMEOUT = httpx.Timeout(600, connect=15, write=60, pool=15)
# Each run has a few connections of its own; the number of runs is limited by the host's room, not here.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)


def model_client(settings: Settings) -> httpx.AsyncClient:
    """The client of the model provider's API. Raises HostNotReady when the settings or the environment prevent it."""
    base = settings.anthropic_base_url
    try:
        url = httpx.URL(base)
        if url.scheme not in {"http", "https"} or not url.host:
            raise HostNotReady(f"ANTHROPIC_BASE_URL is '{without_credentials(base)}', which is no http or https URL")
        # Read here and not by httpx, which fails at what it cannot parse also when it is not for this URL.
        return httpx.AsyncClient(
            base_url=url,
            timeout=TIMEOUT,
            limits=LIMITS,
            proxy=proxy_for(base),
            verify=httpx.create_ssl_context(),
            trust_env=False,
        )
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise HostNotReady(
            f"No client of the model API can be made: {error}. Check ANTHROPIC_BASE_URL, the proxy variables, "
            "and SSL_CERT_FILE and SSL_CERT_DIR, which name the certificates to be trusted"
        ) from error
