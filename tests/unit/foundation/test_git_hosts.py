"""Which repository of which git host a URL means, and where a host's API is."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from foundation.git.hosts import GitHost, host_of, repository_of

HOSTS = [
    GitHost(kind="github", url="https://github.com/"),
    GitHost(kind="gitlab", url="https://git.example.org:8443/scm"),
    GitHost(kind="gitea", url="https://git.example.net", api="https://api.example.net/v1/"),
]


@pytest.mark.parametrize(
    ("url", "number", "name"),
    [
        ("https://github.com/org/repo.git", 0, "org/repo"),
        ("https://GitHub.com/org/repo/", 0, "org/repo"),
        ("git@github.com:org/repo.git", 0, "org/repo"),
        ("https://github.com/org/.github", 0, "org/.github"),
        ("ssh://git@github.com:22/org/repo", 0, "org/repo"),
        ("https://git.example.org:8443/scm/group/sub/repo.git", 1, "group/sub/repo"),
        ("https://git.example.net/org/repo", 2, "org/repo"),
    ],
)
def test_a_url_names_a_repository_of_a_host(url: str, number: int, name: str) -> None:
    assert host_of(HOSTS, url) == (HOSTS[number], name)


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com.example.org/org/repo",
        "https://example.org/github.com/org/repo",
        "http://github.com/org/repo",
        "https://github.com:444/org/repo",
        "https://git.example.org:8443/other/org/repo",
        "https://github.com/org/../repo",
        "https://github.com/org/..",
        "https://github.com/org%2frepo",
        "https://github.com/repo",
        "file:///org/repo",
    ],
)
def test_another_url_names_none(url: str) -> None:
    assert host_of(HOSTS, url) is None


def test_a_host_has_its_api_where_its_kind_has_it() -> None:
    assert [host.api for host in HOSTS] == [
        "https://api.github.com",
        "https://git.example.org:8443/scm/api/v4",
        "https://api.example.net/v1",
    ]


@pytest.mark.parametrize(
    "url", ["http://git.example.org", "https://a@b.example.org", "git.example.org", "", "https://"]
)
def test_no_token_goes_to_a_host_as_everybody_can_read_it(url: str) -> None:
    with pytest.raises(ValidationError):
        GitHost(kind="gitea", url=url)


def test_a_short_name_is_of_the_first_host() -> None:
    assert repository_of(HOSTS, "org/repo") == ("https://github.com/org/repo.git", None)
    for wrong in ("repo", "../repo", "org/..", "org/repo?x", "https://x/y"):
        with pytest.raises(ValueError, match="org/repo"):
            repository_of(HOSTS, wrong)
    with pytest.raises(ValueError, match="TASKYARD_GIT_HOSTS"):
        repository_of([], "org/repo")
