"""What a reverse proxy makes of the fields of requests and answers, and the host names of ports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.machines.ports.fields import Way, answer_fields, request_fields
from api.machines.ports.names import PortName, host_of, named_by
from foundation.http_fields import Fields

BY_PATH = Way(3000, b"/api/v1/tasks/a/ports/3000", "10.0.0.9", "https", b"tasks.example.org")
BY_NAME = Way(3000, b"", "10.0.0.9", "https", b"3000-a.sandboxes.example.org")
DOMAIN = "sandboxes.example.org"


def of(text: str) -> Fields:
    return [tuple(line.strip().encode().split(b": ", 1)) for line in text.strip().splitlines()]  # type: ignore[misc]


def as_text(fields: Fields) -> str:
    return "\n".join(f"{name.decode()}: {value.decode()}" for name, value in fields)


@pytest.mark.parametrize(
    ("way", "sent", "passed"),
    [
        (BY_PATH, "Accept: */*", "Accept: */*"),
        (BY_PATH, "Host: evil", ""),
        (BY_PATH, "Authorization: Basic x", ""),
        (BY_NAME, "Authorization: Basic x", "Authorization: Basic x"),
        (BY_PATH, "Cookie: a=1", ""),
        (BY_NAME, "Cookie: a=1; taskyard=2; __Host-Taskyard-x=3; b=4", "Cookie: a=1; b=4"),
        (BY_NAME, "Cookie: taskyard-session=2", ""),
        (BY_NAME, "Taskyard-Token: x", ""),
        (BY_PATH, "Proxy-Authorization: Basic x", ""),
        (BY_NAME, "Connection: X-Own, close\nX-Own: 1\nX-Other: 2", "X-Other: 2"),
        (BY_NAME, "Keep-Alive: 5\nTE: trailers\nTrailer: X\nUpgrade: h2c\nHTTP2-Settings: x", ""),
        (BY_NAME, "Transfer-Encoding: chunked\nContent-Length: 5\nExpect: 100-continue", ""),
        (BY_NAME, "X-Forwarded-For: 1.2.3.4\nForwarded: for=1.2.3.4\nX-Real-IP: 1.2.3.4", ""),
        (BY_NAME, "Origin: https://x\nReferer: https://x/\nSec-Fetch-Site: none", None),
    ],
)
def test_fields_of_requests(way: Way, sent: str, passed: str | None) -> None:
    ours = ("host", "x-forwarded-")
    told = as_text([field for field in request_fields(of(sent), way) if not field[0].decode().startswith(ours)])
    assert told == (sent if passed is None else passed)


def test_what_a_program_is_told_of_the_way() -> None:
    by_path, by_name = dict(request_fields([], BY_PATH)), dict(request_fields([], BY_NAME))
    assert by_path == {
        b"host": b"localhost:3000",
        b"x-forwarded-for": b"10.0.0.9",
        b"x-forwarded-proto": b"https",
        b"x-forwarded-host": b"tasks.example.org",
        b"x-forwarded-prefix": b"/api/v1/tasks/a/ports/3000",
    }
    assert by_name == {
        b"host": b"3000-a.sandboxes.example.org",
        b"x-forwarded-for": b"10.0.0.9",
        b"x-forwarded-proto": b"https",
        b"x-forwarded-host": b"3000-a.sandboxes.example.org",
    }


@pytest.mark.parametrize(
    ("way", "answered", "passed"),
    [
        (BY_NAME, "Content-Type: text/html\nX-Frame-Options: DENY", None),
        (BY_NAME, "Connection: close\nKeep-Alive: x\nTransfer-Encoding: chunked\nContent-Length: 5", ""),
        (BY_NAME, "Content-Length: 5", None),
        (BY_NAME, "Date: x\nServer: x", ""),
        (BY_NAME, 'Clear-Site-Data: "*"\nAlt-Svc: h3=":443"', ""),
        (BY_NAME, "Strict-Transport-Security: max-age=1", None),
        (BY_NAME, "Access-Control-Allow-Origin: *", None),
        (BY_NAME, "Set-Cookie: a=1; Path=/; Secure", None),
        (BY_NAME, "Set-Cookie: a=1;DOMAIN = example.org; Path=/; domain=x", "Set-Cookie: a=1; Path=/"),
        (BY_NAME, "Location: /x", None),
        (BY_PATH, "Set-Cookie: a=1", ""),
        (BY_PATH, "Strict-Transport-Security: max-age=1\nNEL: x\nReport-To: x\nService-Worker-Allowed: /", ""),
        (BY_PATH, "Access-Control-Allow-Origin: *\nAccess-Control-Allow-Credentials: true", ""),
        (BY_PATH, "Location: /x?y", "Location: /api/v1/tasks/a/ports/3000/x?y"),
        (BY_PATH, "Location: http://localhost:3000", "Location: /api/v1/tasks/a/ports/3000/"),
        (BY_PATH, "Location: http://127.0.0.1:3000/x", "Location: /api/v1/tasks/a/ports/3000/x"),
        (BY_PATH, "Location: http://localhost:3001/x", None),
        (BY_PATH, "Location: http://localhost:30000/x", None),
        (BY_PATH, "Location: //example.org/x", None),
        (BY_PATH, "Location: /\\example.org/x", None),
        (BY_PATH, "Location: x/y", None),
    ],
)
def test_fields_of_answers(way: Way, answered: str, passed: str | None) -> None:
    told = [field for field in answer_fields(of(answered), way) if field[0] != b"content-security-policy"]
    assert as_text(told) == (answered if passed is None else passed)


def test_a_policy_of_the_program_stands_beside_the_sandbox() -> None:
    policies = [
        value for name, value in answer_fields([(b"Content-Security-Policy", b"sandbox allow-same-origin")], BY_PATH)
    ]
    assert policies[0] == b"sandbox allow-same-origin"
    assert policies[1].startswith(b"sandbox ")
    assert b"allow-same-origin" not in policies[1]
    assert not any(name == b"content-security-policy" for name, _ in answer_fields([], BY_NAME))


@pytest.mark.parametrize(
    ("owner", "label"),
    [
        ("1ssrg4b-k3f9q", "80-1ssrg4b-k3f9q"),
        ("fix.Login_2", "80-fix--2e--4cogin--5f2"),
        ("a-", "80-a--2d"),
        ("a--b", "80-a--2d--2db"),
        ("a" * 60, "80-" + "a" * 60),
        ("a" * 61, None),
    ],
)
def test_names_of_ports(owner: str, label: str | None) -> None:
    assert host_of(PortName(owner, 80), DOMAIN) == (label and f"{label}.{DOMAIN}")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True), st.integers(1, 65535))
def test_a_name_leads_to_its_port_alone(owner: str, port: int) -> None:
    name = host_of(PortName(owner, port), DOMAIN)
    if name is not None:
        assert len(name.partition(".")[0]) <= 63
        for host in (name, name.upper(), f"{name}:8122", f"{name}."):
            assert named_by(host, DOMAIN) == PortName(owner, port)


@pytest.mark.parametrize(
    "host",
    [
        *("", DOMAIN, f"80.{DOMAIN}", f"80-.{DOMAIN}", f"a-80.{DOMAIN}", f"0-a.{DOMAIN}", f"080-a.{DOMAIN}"),
        *(
            f"70000-a.{DOMAIN}",
            f"80-a.b.{DOMAIN}",
            f"80-a.x{DOMAIN}",
            "80-a",
            "80-a.example.org",
            f"80-a--2d2.{DOMAIN}.",
        ),
        *(f"80-a--2D.evil.{DOMAIN}", "[::1]:8122", "127.0.0.1:8122", f"80-a--61.{DOMAIN}"),
    ],
)
def test_other_hosts_are_no_names_of_ports(host: str) -> None:
    assert named_by(host, DOMAIN) is None
    assert named_by(f"80-a.{DOMAIN}", None) is None
