"""Proxy variables of the environment: used where they can be, named where they cannot, and never for this host."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.host.doctor import _model
from client import AsyncTaskClient, TaskClient
from foundation.errors import HostNotReady
from foundation.proxies import proxy_for
from foundation.settings import Settings
from worker.gateway.upstream import model_client

NAMES = [name for lower in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (lower, lower.upper())]
AWAY = "https://api.example.org/v1"
UNUSABLE = [
    "socks://proxy:1080",
    "socks5h://proxy",
    "http://",
    "://",
    "http://[",
    "http://p:port",
    "ftp://p",
    "a b",
    "http://p:0",
]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("value", UNUSABLE)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_what_is_no_proxy_is_named_with_its_variable(environment, tmp_path, name, value):
    environment.setenv(name, value)
    settings = Settings(home=tmp_path, anthropic_api_key="k", anthropic_base_url=AWAY)
    for attempt in (lambda: proxy_for(AWAY), lambda: model_client(settings)):
        with pytest.raises(HostNotReady, match=rf"{name} holds"):
            attempt()
    (finding,) = _model(settings)
    assert (finding.grade, name in finding.text) == ("fail", True)


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8122", "http://127.0.0.1/v1", "http://[::1]:80", "https://127.0.0.2", "http://u:p@127.0.0.1"],
)
@pytest.mark.parametrize("value", [*UNUSABLE, "http://proxy:3128"])
def test_this_host_is_reached_without_a_proxy(environment, url, value):
    for name in NAMES:
        environment.setenv(name, value)
    assert proxy_for(url) is None


def test_the_model_of_this_host_has_a_client_whatever_the_variables_hold(environment, tmp_path):
    for name, value in zip(NAMES, UNUSABLE, strict=False):
        environment.setenv(name, value)
    here = Settings(home=tmp_path, anthropic_api_key="k", anthropic_base_url="http://localhost:8000")
    asyncio.run(model_client(here).aclose())


def test_no_proxy_excepts_names_and_their_domains_and_bears_garbage(environment):
    environment.setenv("HTTPS_PROXY", "proxy:3128")
    assert proxy_for(AWAY) == "http://proxy:3128"
    for names in ("example.org", ".example.org", "x, api.example.org", "*"):
        environment.setenv("NO_PROXY", names)
        assert proxy_for(AWAY) is None, names
    for names in ("[", ",,;", "http://api.example.org", "10.0.0.0/99", "*.*(", "ample.org"):
        environment.setenv("NO_PROXY", names)
        assert proxy_for(AWAY) == "http://proxy:3128", names


@pytest.mark.parametrize(
    "base", ["", "api.example.org", "ftp://api.example.org", "https://", "http://[", "http://a\nb"]
)
def test_base_url_that_is_none_is_named(tmp_path, base):
    with pytest.raises(HostNotReady, match="ANTHROPIC_BASE_URL"):
        model_client(Settings(home=tmp_path, anthropic_api_key="k", anthropic_base_url=base))


def test_certificates_that_are_not_there_are_named(environment, tmp_path):
    environment.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(HostNotReady, match="SSL_CERT_FILE"):
        model_client(Settings(home=tmp_path, anthropic_api_key="k", anthropic_base_url=AWAY))


def test_a_client_reads_certificates_for_a_server_with_tls_only(environment, tmp_path):
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        environment.setenv(name, str(tmp_path / "none"))
    for kind in (TaskClient, AsyncTaskClient):
        kind("http://localhost:8122")
        with pytest.raises(HostNotReady, match="SSL_CERT_FILE"):
            kind("https://taskyard.example.org")


@given(value=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30))
@settings(max_examples=40, deadline=None)
def test_whatever_a_proxy_variable_holds_a_client_is_made_or_a_sentence_said(value):
    os.environ["ALL_PROXY"] = value
    try:
        client = model_client(Settings(anthropic_api_key="k", anthropic_base_url=AWAY))
    except HostNotReady:
        assert value.strip() != ""
    else:
        asyncio.run(client.aclose())
    finally:
        del os.environ["ALL_PROXY"]
