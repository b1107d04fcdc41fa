"""`sandbox doctor` and `sandbox clean`: what they find, say, remove and leave."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cli.host.doctor import examine
from cli.main import app
from cli.stack.up import Stack
from foundation.settings import Settings
from tests.stack_settings import isolated_settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = isolated_settings(tmp_path / "home", acceleration="tcg", anthropic_api_key=None)
    for name in ("home", "temporal_port", "temporal_ui_port", "api_port", "s3_port", "acceleration"):
        monkeypatch.setenv(f"TASKYARD_{name.upper()}", str(getattr(made, name)))
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    return made


def test_doctor_names_every_fault_and_its_remedy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = SimpleNamespace(which=lambda _name: None, disk_usage=shutil.disk_usage)
    monkeypatch.setattr("cli.host.doctor.shutil", bare)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.api_port))
        taken.listen()
        settings.guest_certificates = settings.home / "missing.pem"
        settings.egress_denied_hosts = ["https://a.example.org"]
        settings.price_table = settings.home / "missing.yaml"
        settings.host_listen = "127.0.0.1:1"
        settings.token_keys = [settings.home / "missing.pem"]
        settings.host_certificate = settings.home / "missing.crt"
        settings.host_certificate_key = settings.home / "missing.key"
        findings = {finding.name: finding for finding in examine(settings)}
    assert findings["token keys"].grade == "fail"
    assert findings["certificates"].grade == "fail"
    assert "missing.pem" in findings["certificates"].text
    assert findings["network"].grade == "fail"
    assert "TASKYARD_EGRESS_DENIED_HOSTS" in findings["network"].text
    assert (findings["prices"].grade, "missing.yaml" in findings["prices"].text) == ("fail", True)
    assert (findings["host service"].grade, "missing.crt" in findings["host service"].text) == ("fail", True)
    assert findings["OS packages"].grade == "fail"
    assert "apt-get install --no-install-recommends qemu-system-x86 qemu-utils" in findings["OS packages"].mend
    assert findings["ports"].grade == "fail"
    assert f"Port {settings.api_port} for the API server" in findings["ports"].text
    assert findings["image"].grade == "fail"
    assert "sandbox image build" in findings["image"].mend
    assert (findings["model"].grade, findings["acceleration"].grade) == ("warn", "warn")
    assert not settings.home.exists()


def test_doctor_exits_with_1_when_tasks_cannot_run(settings: Settings) -> None:
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 1
    assert "Tasks cannot run here yet" in shown.output
    assert str(settings.home) in shown.output


def test_clean_removes_what_taskyard_made_and_nothing_else(settings: Settings) -> None:
    for name in ("temporal/temporal.db", "bucket/data/1.dat", "logs/worker.log", "secrets/token"):
        path = settings.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    shown = CliRunner().invoke(app, ["clean", "--yes"])
    assert shown.exit_code == 0, shown.output
    assert [str(path.relative_to(settings.home)) for path in settings.home.rglob("*")] == ["secrets", "secrets/token"]
    assert "secrets" in shown.output


def test_clean_asks_first_and_does_nothing_on_no(settings: Settings) -> None:
    settings.logs.mkdir(parents=True)
    assert CliRunner().invoke(app, ["clean"], input="n\n").exit_code == 1
    assert settings.logs.exists()


def test_clean_refuses_while_a_stack_runs(settings: Settings) -> None:
    with Stack(settings, parts=()):
        shown = CliRunner().invoke(app, ["clean", "--yes"])
    assert shown.exit_code == 3
    assert "A stack runs" in shown.stderr
    assert settings.home.exists()
