"""Of an injected secret the guest has a placeholder; what stands in a request to its hosts is the value."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st
from temporalio.testing import ActivityEnvironment

from activities.machine.authority import AUTHORITY, LEAF_TIME, ensure_authority, kept_authority
from activities.machine.injection import PLACEHOLDER_PREFIX, InjectedSecret, new_placeholder
from activities.machine.secrets import RunSecrets, Secrets, environment_block
from foundation.errors import SecretUnavailable
from foundation.settings import Settings
from machines.host import MachineHost
from storage.bucket import Bucket
from tests.stand_ins.memory_bucket import TASK, MemoryBucket
from workflows.runs.requests import SecretsRequest
from workflows.specs.hosts import host_rule
from workflows.specs.wire import Injection, SecretReference

MACHINE = "vm-00112233445566bb"
VALUE = "ghx_0123456789abcdefghijABCDEFGHIJ012345"
REFERENCES = [
    SecretReference(
        name="TOKEN", source="env", key="TASK_TOKEN", inject=Injection(hosts=["*.example.org", "a.test:1"])
    ),
    SecretReference(name="PLAIN", source="env", key="TASK_PLAIN"),
]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("TASK_TOKEN", VALUE)
    monkeypatch.setenv("TASK_PLAIN", "plain-value")
    settings = Settings(home=tmp_path)
    yield settings
    MachineHost(settings).destroy(MACHINE)


def secret(format: str = "Bearer {}", value: str = VALUE) -> InjectedSecret:  # noqa: A002 -- the manifest's word
    rules = (host_rule("api.example.org:443"),)
    return InjectedSecret("TOKEN", value, new_placeholder(value), rules, "Authorization", format)


def test_the_guest_gets_the_same_placeholder_each_time_and_the_host_keeps_the_value(settings: Settings) -> None:
    assert RunSecrets(settings).resolve(MACHINE, REFERENCES) == {"TOKEN": VALUE, "PLAIN": "plain-value"}
    later = RunSecrets(settings)
    later.resolve(MACHINE, REFERENCES)
    given, (injected,) = later.given(MACHINE), later.injected(MACHINE) or ()
    assert given == {"TOKEN": injected.placeholder, "PLAIN": "plain-value"}
    assert given == RunSecrets(settings).given(MACHINE)
    assert given["TOKEN"].startswith(PLACEHOLDER_PREFIX)
    assert len(given["TOKEN"]) == len(VALUE)
    assert injected.value == VALUE
    assert later.redactor(MACHINE).redact_text(f"{VALUE} {given['TOKEN']}") == f"[redacted:TOKEN] {given['TOKEN']}"
    hosts = ("api.example.org", 443), ("api.example.org", 80), ("example.org", 443), ("a.test", 1), ("a.test", 443)
    assert [injected.is_for(*each) for each in hosts] == [True, False, False, True, False]


def test_a_machine_without_secrets_has_nothing_put_in(settings: Settings) -> None:
    assert RunSecrets(settings).resolve(MACHINE, []) == {}
    assert (RunSecrets(settings).given(MACHINE), RunSecrets(settings).injected(MACHINE)) == ({}, None)


@pytest.mark.parametrize(
    "value", ["short", "line one\nline two", "bell\x07bell", "über-token", "x" * 9000, " spaced  "]
)
def test_a_value_that_no_header_can_hold_is_refused_without_being_told(settings, monkeypatch, value: str) -> None:
    monkeypatch.setenv("TASK_TOKEN", value)
    with pytest.raises(SecretUnavailable, match=r"^Secret TOKEN: its value .* leave 'inject' out\.$") as refused:
        RunSecrets(settings).resolve(MACHINE, REFERENCES)
    assert value not in refused.value.message
    assert RunSecrets(settings).injected(MACHINE) is None


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=300))
def test_placeholders_are_never_twice_the_same_and_as_long_as_a_token(value: str) -> None:
    one, other = new_placeholder(value), new_placeholder(value)
    assert one != other
    assert len(one) == len(other) == min(255, max(40, len(value)))


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_the_value_stands_where_the_placeholder_stood() -> None:
    token = secret()
    assert token.filled(f"token {token.placeholder}") == f"token {VALUE}"
    assert token.filled(basic(f"x-access-token:{token.placeholder}")) == basic(f"x-access-token:{VALUE}")
    assert token.filled(f"basic {basic(token.placeholder + ':')[6:]}") == f"basic {basic(VALUE + ':')[6:]}"
    for other in (
        "Bearer another",
        basic("user:password"),
        "Basic ???",
        "Basic",
        "",
        "Bearer " + token.placeholder[:-1],
    ):
        assert token.filled(other) is None


def test_a_request_without_the_header_gets_it_in_the_manifests_format() -> None:
    assert secret().header_value == f"Bearer {VALUE}"
    assert secret("{}").header_value == VALUE
    assert secret("Basic x-access-token:{}").header_value == basic(f"x-access-token:{VALUE}")
    assert secret("Basic {}", "user:password").header_value == basic("user:password")
    assert secret("Basic {}", "dXNlcjpwYXNz").header_value == "Basic dXNlcjpwYXNz"


# --- the authority of a machine


def verified(authority_pem: str, leaf: bytes, host: str, when: datetime) -> bool:
    chain = x509.load_pem_x509_certificates(leaf)
    store = Store([x509.load_pem_x509_certificate(authority_pem.encode())])
    verifier = PolicyBuilder().store(store).time(when).build_server_verifier(x509.DNSName(host))
    try:
        verifier.verify(chain[0], chain[1:])
    except VerificationError:
        return False
    return True


def test_an_authority_is_its_machines_own_and_signs_for_the_injected_hosts_alone(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = ensure_authority(tmp_path, ["example.org", "a.test"])
    assert (tmp_path / AUTHORITY).stat().st_mode & 0o777 == 0o600
    assert ensure_authority(tmp_path, ["example.org"]).pem == authority.pem
    kept = kept_authority(tmp_path)
    assert kept is not None
    for host in ("example.org", "api.example.org", "a.test"):
        leaf = kept.leaf(host, now)
        times = (now - timedelta(days=1), now, now + LEAF_TIME - timedelta(hours=1))
        assert [verified(authority.pem, leaf, host, when) for when in times] == [True, True, True]
        assert not verified(authority.pem, leaf, host, now + LEAF_TIME + timedelta(hours=1))
        assert not verified(authority.pem, leaf, "other." + host, now)
    assert not verified(authority.pem, kept.leaf("example.net", now), "example.net", now)
    (tmp_path / "other").mkdir()
    other = ensure_authority(tmp_path / "other", ["example.org"])
    assert not verified(authority.pem, other.leaf("example.org", now), "example.org", now)
    # What a guest reads with.
    ssl.create_default_context(cadata=authority.pem)


def test_an_authority_that_cannot_be_read_is_none_and_is_made_anew(tmp_path: Path) -> None:
    assert kept_authority(tmp_path) is None
    (tmp_path / AUTHORITY).write_bytes(b"")
    assert kept_authority(tmp_path) is None
    assert ensure_authority(tmp_path, ["example.org"]).pem == kept_authority(tmp_path).pem


def test_the_step_gives_the_guest_placeholders_and_has_it_trust_the_machines_authority(settings: Settings) -> None:
    (settings.machines / MACHINE).mkdir(parents=True)
    host = Mock()
    shell = host.connect.return_value
    step = Secrets(settings, host, cast("Bucket", MemoryBucket())).inject_secrets
    request = SecretsRequest(machine_id=MACHINE, task_id=TASK.id, secrets=REFERENCES)
    for _ in range(2):
        assert ActivityEnvironment().run(step, request).names == ["TOKEN", "PLAIN"]
    given = environment_block(RunSecrets(settings).given(MACHINE))
    assert [call.args[1] for call in shell.write.call_args_list] == [given, given]
    assert VALUE.encode() not in given
    authority = kept_authority(settings.machines / MACHINE)
    assert authority is not None
    trusted = [call.kwargs["input"] for call in shell.run.call_args_list if "input" in call.kwargs]
    assert trusted == [authority.pem.encode()] * 2
    assert b"PRIVATE" not in trusted[0]
