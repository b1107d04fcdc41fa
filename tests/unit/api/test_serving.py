"""The server process: what it promises those who keep a connection to it."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from api.http.serving import make_server

# Seconds for which clients keep a connection that nothing is sent on, before they close it themselves.
CLIENTS = {
    "httpx": httpx.Limits().keepalive_expiry or 0,
    "Node's fetch": 4,
    "aiohttp": 15,
    "nginx to what is behind it": 60,
    "Go's net/http": 90,
    "curl": 118,
}


@pytest.mark.parametrize("client", CLIENTS)
def test_the_server_is_not_the_first_to_close_an_idle_connection(client: str) -> None:
    assert make_server(FastAPI()).config.timeout_keep_alive > CLIENTS[client] + 1
