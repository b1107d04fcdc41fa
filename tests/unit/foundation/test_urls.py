"""Credentials in URLs are found and taken out in every spelling, and nothing else is taken for them."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.urls import has_credentials, is_telling, without_credentials

WORDS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
# What passwords are made of: at least one letter, so that a password is no port.
SECRET = st.text(WORDS + "-._~!$*+|^{}\\:@%é", min_size=6, max_size=40).map(lambda text: f"x{text}9")
PLACES = [
    "https://{}@git.example.org/a.git",
    "http://{}@127.0.0.1:9418/a.git",
    "https://:{}@git.example.org/a.git",
    "https://someone:{}@git.example.org:8443/a.git",
    "HTTPS://Someone:{}@git.example.org/a.git",
    "git+https://{}@git.example.org/a.git",
    "wss://{}@git.example.org/a",
    "ssh://git:{}@git.example.org/a.git",
    "ssh://:{}@git.example.org/a.git",
    "postgres://app:{}@db.example.org/app",
    "//someone:{}@git.example.org/a.git",
    "https://git.example.org/a.git?private_token={}",
    "https://git.example.org/a.git?a=b&access_token={}",
    "https://git.example.org/a.git#access-token={}",
    "https://git.example.org/a.git;password={}",
    "https://git.example.org/a.git?x=1&X-Amz-Signature={}",
    "https://git.example.org/a.git?api%5Fkey={}",
    "https://git.example.org/a.git?sig={}&b=c",
]
AROUND = ["{}", "--url={}", "fatal: unable to access '{}': refused", "see <{}>.", '["{}"]', "a\n{}\nb"]


def encoded(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


@given(SECRET, st.sampled_from(PLACES), st.sampled_from(AROUND), st.sampled_from([quote, encoded, str, None]))
def test_a_secret_is_found_and_taken_out_wherever_it_stands_in_a_url(secret, place, around, spell) -> None:
    # Twice encoded is read as well; what is written as it is cannot hold what ends its part of a URL.
    spelled = quote(quote(secret, safe=""), safe="") if spell is None else spell(secret)
    if spell is str and "=" in place:
        spelled = spelled.replace("%", "")
    text = around.format(place.format(spelled))
    assert has_credentials(text)
    shown = without_credentials(text)
    assert spelled not in shown
    assert "example.org" in shown or "127.0.0.1" in shown
    assert without_credentials(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "git:hush@git.example.org:org/a.git",
        "git%3Ahush@git.example.org:org/a.git",
        "https://someone:hu/sh@git.example.org/a.git",
        "https://someone:hu?sh@git.example.org/a.git",
        "https://someone%3Ahush%40git.example.org/a.git",
        "https://hush%40git.example.org/a.git",
        "https://mcp.example.org/?next=https%3A%2F%2Fhush%40git.example.org%2Fa",
        "https://git.example.org/glpat-hush0123456789/a.git",
        "ssh://ghp_hush0123456789abcdef@git.example.org/a.git",
        "https://git.example.org/?next=https://mcp.example.org/?token=hush",
        "https://git.example.org/?page=1;password=hu?sh#hu;sh",
        "https://git.example.org/x-token-auth:hush/a.git",
        "https:\\\\hush@git.example.org/a.git",
        "HTTPS:/\\someone:hush@git.example.org/a.git",
        "https:/hush@git.example.org/a.git",
        "https:///someone:hush@git.example.org/a.git",
        "https://git.example.org/a/x-access-token%3Ahush/b",
        "https://git.example.org/oauth2:hush",
        "https://git.example.org/access_token=hush/a.git",
        "ghp_hush0123456789abcdef@git.example.org:org/a.git",
        "TOKEN is glpat-hush0123456789",
        "https://${TOKEN:-hush}@git.example.org/a",
        "https://${NAME}:hush@git.example.org/a",
    ],
)
def test_odd_spellings(text: str) -> None:
    assert has_credentials(text)
    assert "hush" not in without_credentials(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://git.example.org/a.git",
        "http://git.example.org:8080/a@b",
        "https://git.example.org/%40scope/a?max_tokens=10&author=me&x=y@z",
        "ssh://git@git.example.org/a.git",
        "git+ssh://git@[::1]:22/a.git",
        "git@git.example.org:org/a.git",
        "postgres://app@db.example.org/app",
        "file:///a@b/c.git",
        "https://github.com/org/sk-learn-tutorial-2024",
        "mailto:someone@example.org",
        "registry.example.org:5000/org/tool@sha256:0123456789abcdef",
        "docker run node:22@sha256:0123456789abcdef",
        "https://docs.example.org/oauth2/token/access-tokens:list",
        "// write to someone@example.org, at 12:30",
    ],
)
def test_what_holds_no_credentials_is_left_as_it_is(text: str) -> None:
    assert not has_credentials(text)
    assert without_credentials(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "https://${TOKEN}@git.example.org/a",
        "https://x-access-token:${TOKEN}@git.example.org/a",
        "https://git.example.org/a?token=${TOKEN}&x=1",
        "https://git.example.org/x-token-auth:${TOKEN}/a.git",
    ],
)
def test_a_reference_to_a_secret_is_no_secret(text: str) -> None:
    assert not has_credentials(text)


@given(st.text(), st.text())
def test_any_text_is_read_and_what_is_taken_out_stays_out(before: str, after: str) -> None:
    text = f"{before}://{after}"
    has_credentials(text)
    shown = without_credentials(text)
    assert without_credentials(shown) == shown


def test_names_that_tell_of_a_secret() -> None:
    telling = ["GITHUB_TOKEN", "Authorization", "x-api-key", "password", "client_secret", "sig", "private%5Ftoken"]
    assert [name for name in telling if not is_telling(name)] == []
    plain = ["max_tokens", "MODE", "author", "keyboard", "PATH", "Content-Type"]
    assert [name for name in plain if is_telling(name)] == []
