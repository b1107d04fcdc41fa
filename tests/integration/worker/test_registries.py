"""What the word ``registries`` stands for, by this host's real npm, pip and apt."""

from __future__ import annotations

import subprocess

import pytest

from foundation.settings import Settings
from worker.egress import registries
from worker.egress.registries import registry_rules


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://npm.example.org:8443/path/")
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@pip.example.org/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://more.example.org/simple file:///srv/wheels")
    return Settings(image_mirror="http://debian.example.org/debian")


def test_registries_are_those_that_the_programs_of_the_host_are_set_up_with(configured):
    assert {str(rule) for rule in registry_rules(configured)} == {
        "npm.example.org:8443",
        "pip.example.org:443",
        "more.example.org:80",
        "debian.example.org:80",
    }


def test_program_that_is_not_set_up_has_a_registry_of_its_own(configured, monkeypatch):
    for name in ("NPM_CONFIG_REGISTRY", "PIP_INDEX_URL"):
        monkeypatch.delenv(name)
    hosts = {rule.host for rule in registry_rules(configured)}
    assert {"more.example.org", "debian.example.org"} < hosts
    assert not {"npm.example.org", "pip.example.org"} & hosts
    assert len(hosts) > 3


def test_program_that_fails_names_nothing_and_holds_up_no_other(configured, monkeypatch):
    said = registries._said

    def failing(*command: str) -> str:
        if "npm" in " ".join(command):
            raise subprocess.TimeoutExpired(command, 1)
        return said(*command)

    monkeypatch.setattr(registries, "_said", failing)
    hosts = {rule.host for rule in registry_rules(configured)}
    assert hosts == {"pip.example.org", "more.example.org", "debian.example.org"}
