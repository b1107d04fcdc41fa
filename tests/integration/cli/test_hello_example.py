"""The example's repository: fetched through pip, made with git, served by git over loopback HTTP."""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from examples.hello import prepare as preparation
from examples.hello.prepare import prepare
from examples.hello.serve import PORT, serve
from foundation.errors import HostNotReady
from foundation.settings import Settings
from tests.manifests import parse_yaml

MANIFEST = Path(__file__).parents[3] / "examples/hello/task.yaml"


def git(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *map(str, arguments)], check=False, capture_output=True, text=True)


def test_repository_is_the_same_wherever_it_is_made(tmp_path):
    said: list[str] = []
    first = prepare(Settings(), said.append, tmp_path / "one")
    second = prepare(Settings(), directory=tmp_path / "two")
    assert first.base_commit == second.base_commit
    assert prepare(Settings(), said.append, tmp_path / "one") == first
    assert len([line for line in said if "git repository" in line]) == 1


def test_fault_is_one_line_that_the_packages_own_tests_notice(tmp_path):
    made = prepare(Settings(), directory=tmp_path)
    work = tmp_path / "work"
    assert git("clone", "--quiet", made.path, work).returncode == 0
    changed = git("-C", work, "show", "--numstat", "--format=", made.base_commit).stdout.split()
    assert changed == ["1", "1", made.faulty_file]
    for commit, outcome in ((f"{made.base_commit}^", 0), (made.base_commit, 1)):
        assert git("-C", work, "checkout", "--quiet", commit).returncode == 0
        assert (
            subprocess.run(made.test_command, shell=True, cwd=work, check=False, capture_output=True).returncode
            == outcome
        )


def test_served_repository_can_be_cloned_and_not_pushed_to(tmp_path):
    made = prepare(Settings(), directory=tmp_path)
    work = tmp_path / "work"
    with serve(made.path) as url:
        assert git("clone", "--quiet", "--branch", made.branch, url, work).returncode == 0
        assert git("-C", work, "rev-parse", "HEAD").stdout.strip() == made.base_commit
        pushed = git("-C", work, "push", "origin", "HEAD:refs/heads/other")
        assert pushed.returncode != 0
        assert "403" in pushed.stderr
        assert "not found" in git("ls-remote", url.replace("cachetools", "nothing")).stderr
    assert git("ls-remote", url).returncode != 0


def test_manifest_names_what_is_served(tmp_path):
    manifest = parse_yaml(MANIFEST.read_bytes())
    made = prepare(Settings(), directory=tmp_path)
    address = urlsplit(manifest.repository.url)
    assert (address.port, address.path, manifest.repository.branch) == (PORT, f"/{made.path.name}", made.branch)
    assert made.test_command in manifest.claude.prompt
    assert made.faulty_file in manifest.lifecycle.artifact_patterns


def test_other_source_than_the_pinned_one_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "SHA256", "0" * 64)
    with pytest.raises(HostNotReady, match="not the one pinned"):
        prepare(Settings(home=tmp_path))
    assert list((tmp_path / "cache").iterdir()) == []
