"""What a manifest may say of injected credentials: hosts that its network allows, one secret for a header, a format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foundation.errors import InvalidManifest
from tests.manifests import parse_yaml
from workflows.specs.hosts import host_rule
from workflows.specs.injection import covers, injected_host
from workflows.specs.manifest import Manifest, parse


def manifest(*injections: Any, mode: str = "outbound", allowed: tuple[str, ...] = ("api.example.org",)) -> Any:
    return {
        "metadata": {"name": "injected"},
        "repository": {"url": "https://git.example.org/repo.git", "branch": "main"},
        "claude": {"prompt": "Call the API."},
        "vm": {"network_mode": mode, "allowed_hosts": list(allowed) if mode == "outbound" else []},
        "secrets": [
            {"name": f"TOKEN_{number}", "source": "env", "key": "TASK_TOKEN", "inject": inject}
            for number, inject in enumerate(injections)
        ],
    }


def faults(data: Any) -> dict[str, str]:
    with pytest.raises(InvalidManifest) as refused:
        parse(data)
    return {fault["field"]: fault["message"] for fault in refused.value.details["errors"]}


def test_a_bearer_token_for_a_host_is_the_short_form() -> None:
    injection = parse(manifest({"hosts": ["api.example.org"]})).secrets[0].inject
    assert injection is not None
    assert (injection.header, injection.format) == ("Authorization", "Bearer {}")
    assert Manifest.model_validate(parse(manifest(None)).model_dump()).secrets[0].inject is None


@pytest.mark.parametrize(
    ("inject", "field"),
    [
        ({"hosts": []}, "hosts"),
        ({"hosts": ["https://api.example.org"]}, "hosts[0]"),
        ({"hosts": ["192.0.2.1:443"]}, "hosts[0]"),
        ({"hosts": ["*"]}, "hosts[0]"),
        ({"hosts": ["api.example.org"] * 21}, "hosts"),
        ({"hosts": ["api.example.org"], "header": "X Token"}, "header"),
        ({"hosts": ["api.example.org"], "header": "X-A\r\nX-B"}, "header"),
        ({"hosts": ["api.example.org"], "header": "Host"}, "header"),
        ({"hosts": ["api.example.org"], "header": "Transfer-Encoding"}, "header"),
        ({"hosts": ["api.example.org"], "header": "Proxy-Authorization"}, "header"),
        ({"hosts": ["api.example.org"], "format": "Bearer"}, "format"),
        ({"hosts": ["api.example.org"], "format": "{}:{}"}, "format"),
        ({"hosts": ["api.example.org"], "format": "Bearer {}\n"}, "format"),
        ({"hosts": ["api.example.org"], "formats": "Bearer {}"}, "formats"),
        ({}, "hosts"),
        ("api.example.org", ""),
    ],
)
def test_what_could_not_be_put_in_is_refused_with_its_field(inject: Any, field: str) -> None:
    assert list(faults(manifest(inject))) == ["secrets[0].inject" + (f".{field}" if field else "")]


@pytest.mark.parametrize(
    ("mode", "allowed", "hosts", "fault"),
    [
        ("outbound", ["api.example.org"], ["api.example.org"], None),
        ("outbound", ["api.example.org:443"], ["api.example.org"], None),
        ("outbound", ["*.example.org"], ["api.example.org", "*.example.org", "*.api.example.org"], None),
        ("outbound", ["api.example.org:8443"], ["api.example.org:8443"], None),
        ("full", [], ["api.example.org", "*.example.net:8443"], None),
        ("outbound", [], ["api.example.org"], "'api.example.org:443'"),
        ("outbound", ["api.example.org:80"], ["api.example.org"], "'api.example.org:443'"),
        ("outbound", ["example.org"], ["api.example.org"], "'api.example.org:443'"),
        ("outbound", ["*.example.org"], ["example.org"], "'example.org:443'"),
        ("outbound", ["api.example.org"], ["*.api.example.org"], "'*.api.example.org:443'"),
        ("isolated", [], ["api.example.org"], "network_mode 'outbound'"),
    ],
)
def test_its_hosts_must_be_allowed_by_the_network(mode: str, allowed: list[str], hosts: list[str], fault: Any) -> None:
    data = manifest({"hosts": hosts}, mode=mode, allowed=tuple(allowed))
    if fault is None:
        parse(data)
    else:
        assert [fault in message for message in faults(data).values()] == [True]


def test_a_host_has_one_secret_for_a_header() -> None:
    one, other = {"hosts": ["*.example.org"]}, {"hosts": ["api.example.org"]}
    allowed = ("*.example.org",)
    assert "TOKEN_0" in faults(manifest(one, other, allowed=allowed))["secrets[1].inject.hosts[0]"]
    parse(manifest(one, {**other, "header": "X-Api-Key", "format": "{}"}, allowed=allowed))
    parse(manifest(other, {"hosts": ["www.example.org"]}, allowed=allowed))


@pytest.mark.parametrize("host", ["api.example.org", "*.example.org", "api.example.org:8443"])
def test_a_rule_covers_itself(host: str) -> None:
    assert covers(host_rule(host), injected_host(host))


def test_the_manifests_of_the_page_are_such() -> None:
    page = (Path(__file__).parents[3] / "docs" / "secrets.md").read_text()
    manifests = [parse_yaml(block.partition("```")[0]) for block in page.split("```yaml\n")[1:]]
    assert {each.name for manifest in manifests for each in manifest.secrets if each.inject} == {
        "API_TOKEN",
        "GIT_TOKEN",
    }
