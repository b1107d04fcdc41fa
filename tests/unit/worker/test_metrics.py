"""The worker's metrics answer those who ask by a name that no web page can make lead here."""

from __future__ import annotations

import http.client
import socket

import pytest

from foundation.settings import Settings
from machines.host import MachineHost
from worker.metrics import WorkerMetrics


@pytest.fixture
def port(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    with WorkerMetrics().serving(number, MachineHost(Settings(home=tmp_path))):
        yield number


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8123", 200),
        ("127.0.0.1", 200),
        ("[::1]:8123", 200),
        ("taskyard.example.org", 403),
        ("localhost.example.org", 403),
        ("127.0.0.1.example.org:8123", 403),
        ("", 403),
        ("[", 403),
        ("a b", 403),
    ],
)
def test_metrics_are_for_who_asks_by_address_or_as_localhost(port, host, status):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/metrics", headers={"Host": host})
    answer = connection.getresponse()
    assert answer.status == status
    assert (b"taskyard_host_machines" in answer.read()) == (status == 200)
    connection.close()
