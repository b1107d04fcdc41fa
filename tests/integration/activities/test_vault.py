"""Secrets from Vault over real connections: what is read, how the worker logs in, and what each refusal says."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from activities.machine import vault as module
from activities.machine.secrets import MAX_BYTES, resolve_all
from cli.host.doctor import _vault
from foundation.errors import SecretSourceAway, SecretUnavailable
from foundation.settings import Settings
from tests.stand_ins.vault_server import ROLE_ID, SECRET_ID, VaultServer
from workflows.specs.manifest import SecretReference

VALUE = "hush-4711-from-vault"
TOKEN = "hvs.root-4711"


@pytest.fixture
def server() -> Iterator[VaultServer]:
    with VaultServer(tokens={TOKEN: ["*"]}) as running:
        running.stored[("secret", "team/deploy")] = {"value": VALUE, "port": 5432, "nested": {"a": [1]}, "user": "bot"}
        running.stored[("secret", "team/a b+ü%")] = {"value": VALUE}
        running.stored[("secret", "odd")] = {
            "empty": "",
            "large": "x" * (MAX_BYTES + 1),
            "nul": "a\0b",
            "half": "\ud800",
        }
        running.stored[("kv", "team/deploy")] = {"value": VALUE, "data": "a field of this name"}
        yield running


@pytest.fixture
def settings(tmp_path: Path, server: VaultServer, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(module.Vault.__init__, "__defaults__", (lambda _: None,))
    module._logins.clear()
    return Settings(home=tmp_path, vault_address=server.url, vault_token=TOKEN)


def by_role(settings: Settings, **more: Any) -> Settings:
    role = {"vault_token": None, "vault_role_id": ROLE_ID, "vault_secret_id": SECRET_ID} | more
    return Settings(home=settings.home, vault_address=settings.vault_address, **role)


def one(settings: Settings, key: str) -> str:
    return resolve_all(settings, [SecretReference(name="TOKEN", source="vault", key=key)])["TOKEN"]


def refused(settings: Settings, key: str = "team/deploy", *, later: bool = False) -> str:
    with pytest.raises(SecretUnavailable) as caught:
        one(settings, key)
    error = caught.value
    assert error.message.startswith(f"Secret TOKEN: the Vault path {key} ")
    for secret in (VALUE, TOKEN, SECRET_ID):
        assert secret not in f"{error.message} {error.details} {error.__cause__!r} {error.__context__!r}"
    assert isinstance(error, SecretSourceAway) == error.retryable == later
    return error.message


@pytest.mark.parametrize(
    ("key", "value"),
    [("team/deploy", VALUE), ("team/deploy:value", VALUE), ("team/deploy:user", "bot"), ("team/a b+ü%", VALUE)],
)
def test_a_field_of_a_secret_whose_other_fields_are_of_any_kind(settings: Settings, key: str, value: str) -> None:
    assert one(settings, key) == value


def test_the_mount_says_which_version_it_is_unless_the_settings_do(settings: Settings, server: VaultServer) -> None:
    older = settings.model_copy(update={"vault_mount": "kv"})
    assert one(older, "team/deploy") == VALUE
    assert server.asked == ["GET /v1/sys/internal/ui/mounts/kv", "GET /v1/kv/team/deploy"]
    server.asked.clear()

    assert one(settings.model_copy(update={"vault_kv_version": "2"}), "team/deploy") == VALUE
    assert server.asked == ["GET /v1/secret/data/team/deploy"]


def test_the_usual_variables_of_vault_are_read_too(
    server: VaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.namespace = "team"
    for name, value in {"ADDR": server.url, "TOKEN": TOKEN, "NAMESPACE": "team"}.items():
        monkeypatch.setenv(f"VAULT_{name}", value)

    assert one(Settings(home=tmp_path), "team/deploy") == VALUE
    # But no task gets the worker's own token.
    with pytest.raises(SecretUnavailable, match="never"):
        resolve_all(Settings(home=tmp_path), [SecretReference(name="T", source="env", key="VAULT_TOKEN")])


def test_one_login_serves_many_runs_and_is_made_anew_when_it_is_refused(
    settings: Settings, server: VaultServer
) -> None:
    role = by_role(settings)
    assert one(role, "team/deploy") == one(role, "team/deploy:value") == VALUE
    assert server.logins == 1

    server.tokens.clear()
    assert one(role, "team/deploy") == VALUE
    assert server.logins == 2

    # A lease that is as good as over is not begun with.
    module._logins.clear()
    server.lease_seconds = 1
    one(role, "team/deploy")
    for key, login in module._logins.items():
        module._logins[key] = module._Login(login.token, 0.0)
    one(role, "team/deploy")
    assert server.logins == 4


def test_who_may_not_read_is_told_so_and_logs_in_anew_only_once(settings: Settings, server: VaultServer) -> None:
    server.role_policy = ["other/*"]

    assert "denied" in refused(by_role(settings))
    assert server.logins == 2


@pytest.mark.parametrize(
    ("changed", "key", "words"),
    [
        ({"vault_address": None}, "team/deploy", "knows no Vault; set TASKYARD_VAULT_ADDRESS"),
        ({"vault_token": None}, "team/deploy", "no login at Vault; set TASKYARD_VAULT_TOKEN, or"),
        ({"vault_token": "hvs.old"}, "team/deploy", "refuses the token"),
        ({"vault_token": None, "vault_role_id": "x", "vault_secret_id": "y"}, "team/deploy", "refuses the AppRole"),
        ({"vault_paths": ["public/*"]}, "team/deploy", "not allowed; TASKYARD_VAULT_PATHS"),
        ({"vault_mount": "nowhere"}, "team/deploy", "no mount 'nowhere'"),
        ({"vault_mount": "pki"}, "team/deploy", "no key-value store"),
        ({"vault_kv_version": "1"}, "team/deploy", "does not exist"),
        ({"vault_ca_file": "/nonexistent/ca.pem"}, "team/deploy", "TASKYARD_VAULT_CA_FILE"),
        ({}, "team/deplyo", "does not exist below the mount 'secret'"),
        ({}, "secret/data/team/deploy", "without the mount"),
        ({}, "team/deploy:passwd", "has no field 'passwd'"),
        ({}, "team/deploy:port", "no text in its field 'port'"),
        ({}, "gone", "newest is deleted"),
        ({}, "odd:empty", "is empty"),
        ({}, "odd:large", "larger than 64 KiB"),
        ({}, "odd:nul", "NUL"),
        ({}, "odd:half", "UTF-8"),
    ],
)
def test_each_refusal_says_what_to_do(
    settings: Settings, server: VaultServer, changed: dict[str, Any], key: str, words: str
) -> None:
    server.versions["pki"] = 0
    server.deleted.add(("secret", "gone"))
    given = {"home": settings.home, "vault_address": server.url, "vault_token": TOKEN} | changed

    assert words in refused(Settings(**given), key)


SEALED = (503, b'{"errors": ["Vault is sealed"]}', {})


@pytest.mark.parametrize(
    ("passing", "reached"),
    [
        ([SEALED, SEALED], True),
        ([(429, b"", {}), (500, b"<html>", {}), (472, b"{}", {})], True),
        ([(307, b"", {"Location": "/v1/secret/data/team/deploy"})], True),
        ([SEALED] * 4, False),
        ([(502, b"<html>bad gateway</html>", {})] * 4, False),
    ],
)
def test_what_passes_is_waited_for_with_an_end(
    settings: Settings, server: VaultServer, passing: list[Any], *, reached: bool
) -> None:
    server.awry.extend(passing)
    settings = settings.model_copy(update={"vault_kv_version": "2"})
    if reached:
        assert one(settings, "team/deploy") == VALUE
    else:
        assert ("is sealed" if SEALED in passing else "status 502") in refused(settings, later=True)
    assert not server.awry


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((307, b"", {"Location": "http://vault.example.org:8200/v1/secret/data/x"}), "sends to another host"),
        ((302, b"", {"Location": "https://127.0.0.1/v1/secret/data/x"}), "sends to another host"),
        ((302, b"", {"Location": "http://[bad"}), "sends to another host"),
        ((200, b'{"data": "' + b"x" * 2**20 + b'"}', {}), "larger than"),
        ((200, b"[" * 100_000, {}), "is no Vault"),
        ((200, b"<html>" + VALUE.encode(), {}), "is no Vault"),
        ((200, b'{"data": {"data": ["hush-4711-from-vault"]}}', {}), "a form that is not known"),
        ((200, b"{}", {"Content-Encoding": "gzip"}), "is no Vault"),
        ((418, b"{}", {}), "status 418"),
    ],
)
def test_a_server_that_is_none_or_lies(
    settings: Settings, server: VaultServer, answer: tuple[int, bytes, dict[str, str]], words: str
) -> None:
    server.awry.append(answer)

    assert words in refused(settings.model_copy(update={"vault_kv_version": "2"}))
    assert len(server.asked) == 1


def test_redirects_that_never_end(settings: Settings, server: VaultServer) -> None:
    server.awry.extend([(307, b"", {"Location": "/v1/secret/data/team/deploy"})] * 3)

    assert "from one address to the next" in refused(settings.model_copy(update={"vault_kv_version": "2"}))


def test_a_vault_that_is_away_may_come_back(settings: Settings, server: VaultServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        away = settings.model_copy(update={"vault_address": f"http://127.0.0.1:{taken.getsockname()[1]}"})
        assert "cannot be reached" in refused(away, later=True)
    server.sealed = True
    assert "is sealed; unseal it" in refused(settings, later=True)


def test_a_look_at_the_host_says_what_vault_says(settings: Settings) -> None:
    assert [(found.grade, "version 2 at secret" in found.text) for found in _vault(settings)] == [("ok", True)]
    wrong = settings.model_copy(update={"vault_token": SecretStr("hvs.old")})
    assert [(found.grade, "refuses the token" in found.text) for found in _vault(wrong)] == [("warn", True)]
    assert list(_vault(settings.model_copy(update={"vault_address": None}))) == []


@pytest.mark.parametrize("address", ["vault.example.org", "ftp://x", "https://", "https://u:p@x", "https://x?a=b"])
def test_addresses_that_are_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match="must be a URL"):
        Settings(home=tmp_path, vault_address=address)
