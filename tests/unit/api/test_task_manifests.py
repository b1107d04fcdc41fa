"""The manifest of a run of the task-runs dialect whose repository is named in short."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from api.posthog.runs.manifests import RunOptions, manifest_of
from foundation.errors import InvalidBody
from foundation.git.hosts import CredentialReference, GitHost
from foundation.settings import Settings
from workflows.parents.messages import ParentStatus

NOW = datetime(2026, 1, 2, tzinfo=UTC)
OPENED = GitHost(
    kind="gitea", url="https://git.example.org", credentials=CredentialReference(source="env", key="GIT_BOT")
)
CLOSED = GitHost(kind="gitea", url="https://git.example.org")


def a_parent(repository: str) -> ParentStatus:
    facts = {"id": "a", "project": "1", "number": 1, "title": "Fix it", "description": "Why", "repository": repository}
    return ParentStatus.model_validate(facts | {"created_by": "b", "created_at": NOW, "updated_at": NOW})


def test_work_goes_back_to_the_host_that_is_opened_by_its_credentials() -> None:
    manifest = manifest_of(Settings(git_hosts=[OPENED]), a_parent("org/repo"), RunOptions(), "r")

    opens = manifest.push_credentials()
    assert manifest.repository.url == "https://git.example.org/org/repo.git"
    assert (opens and opens.source, opens and opens.key) == ("env", "GIT_BOT")
    assert manifest.guest_secrets() == []
    assert manifest.repository.push is not None
    assert manifest.repository.push.pull_request is not None


@pytest.mark.parametrize(
    ("host", "repository", "url"),
    [
        (CLOSED, "org/repo", "https://git.example.org/org/repo.git"),
        (OPENED, "https://git.example.org/org/repo", "https://git.example.org/org/repo"),
    ],
)
def test_nothing_is_pushed_without_credentials_or_by_a_url(host: GitHost, repository: str, url: str) -> None:
    manifest = manifest_of(Settings(git_hosts=[host]), a_parent(repository), RunOptions(), "r")

    assert (manifest.repository.url, manifest.repository.push, manifest.secrets) == (url, None, [])


@pytest.mark.parametrize(("hosts", "repository"), [([], "org/repo"), ([OPENED], "org/..")])
def test_a_name_that_means_no_repository_is_told_by_its_field(hosts: list[GitHost], repository: str) -> None:
    with pytest.raises(InvalidBody) as refused:
        manifest_of(Settings(git_hosts=hosts), a_parent(repository), RunOptions(), "r")
    assert refused.value.details["errors"][0]["field"] == "repository"
