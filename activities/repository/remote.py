"""What a repository's server says: its branches, and its refusals as errors of the project."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from activities.repository.access import Access
from activities.repository.git import GitFailed, GitStopped, allowed_protocols, run_git
from foundation.errors import (
    RefNotFound,
    RepositoryDenied,
    RepositoryError,
    RepositoryNotAllowed,
    RepositoryNotFound,
    RepositoryUnreachable,
)
from foundation.settings import Settings
from foundation.urls import without_credentials
from workflows.specs.wire import DEFAULT_BRANCH, Repository

# Three attempts of this length and the 15 s between them (workflows.steps.STAGE) stay below a minute.
LOOK_SECONDS = 13.0

_NAMES_MOST = 8
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)(?=:)")
_SCP = re.compile(r"^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:(?!//)")

_UNKNOWN_HOST = (
    "The SSH host key of repository {named} is not known on this host; add it to known_hosts of the worker's user"
)
# In place of the sentences below, when the run has credentials of its own.
_WITH_SECRET: dict[type[RepositoryError], str] = {
    RepositoryDenied: "The server of repository {named} refuses the credentials of secret {secret}; see that they are "
    "valid and may read this repository",
    RepositoryNotFound: "Repository {named} does not exist on its server, or the credentials of secret {secret} may "
    "not read it",
}

# What git, curl and ssh say (LC_ALL=C, compared in lower case) and what it means; the first row with a match counts.
_REFUSALS: list[tuple[tuple[str, ...], type[RepositoryError], str]] = [
    (
        ("died of signal 25", "file too large"),
        RepositoryError,
        "Repository {named} holds more than the disk of the machine; give more in vm.disk",
    ),
    (
        ("' not allowed",),
        RepositoryNotAllowed,
        "Repository {named} uses a transport that is not allowed here",
    ),
    (
        ("host key verification failed",),
        RepositoryDenied,
        _UNKNOWN_HOST,
    ),
    (
        ("ssl certificate", "certificate verif", "server certificate", "certificate has expired"),
        RepositoryError,
        "The TLS certificate of repository {named} is not trusted on this host; add its authority there",
    ),
    (
        (
            "terminal prompts disabled",
            "could not read username",
            "could not read password",
            "authentication failed",
            "permission denied",
            "error: 401",
            "error: 403",
            "access denied",
            "dubious ownership",
        ),
        RepositoryDenied,
        "Repository {named} does not exist or wants credentials; check the URL or give git credentials on the host",
    ),
    (
        (
            "repository not found",
            "' not found",
            "error: 404",
            "error: 410",
            "does not appear to be a git repository",
            "not valid: is this a git repository",
            "does not exist",
            "no such project",
            "project you were looking for could not be found",
        ),
        RepositoryNotFound,
        "Repository {named} does not exist on its server; correct repository.url",
    ),
    (
        (
            "could not resolve",
            "name or service not known",
            "temporary failure in name resolution",
            "failed to connect",
            "couldn't connect",
            "connection refused",
            "connection timed out",
            "connection reset",
            "connection closed",
            "connection to ",
            "no route to host",
            "network is unreachable",
            "operation too slow",
            "timed out",
            "empty reply",
            "rpc failed",
            "early eof",
            "hung up unexpectedly",
            "unexpected disconnect",
            "transfer closed",
            "gnutls",
            "ssl_error",
            "ssl_read",
            "error: 408",
            "error: 429",
            "error: 5",
            "could not read from remote repository",
        ),
        RepositoryUnreachable,
        "The server of repository {named} cannot be reached",
    ),
    ((), RepositoryError, "Repository {named} could not be fetched"),
]


@dataclass(frozen=True)
class RemoteBranch:
    """A branch as the server has it now. ``head`` is the name of the server's default branch, if it names one."""

    tip: str
    head: str | None


def check_allowed(settings: Settings, url: str) -> None:
    """Raises RepositoryNotAllowed when the URL's transport may not be used here."""
    scheme = _SCHEME.match(url)
    transport = "ssh" if _SCP.match(url) else scheme[1].lower() if scheme else "file"
    allowed = allowed_protocols(settings)
    if transport not in allowed:
        hint = "; an operator can allow it with TASKYARD_ALLOW_FILE_REPOSITORIES=true" if transport == "file" else ""
        raise RepositoryNotAllowed(
            f"Repository {without_credentials(url)} uses {transport}, which is not allowed here; "
            f"use one of: {', '.join(allowed)}{hint}.",
            url=without_credentials(url),
        )


def on_its_branch(access: Access, repository: Repository) -> Repository:
    """The repository with the name of the server's default branch, where the manifest says ``HEAD``.

    Raises as ``look_up`` does.
    """
    if repository.branch != DEFAULT_BRANCH:
        return repository
    head = look_at(access, repository).head
    if head is None:
        raise _no_branch(repository, _list(access, repository, "--heads", "--tags", "--", repository.url))
    return repository.model_copy(update={"branch": head})


def look_up(access: Access, repository: Repository) -> RemoteBranch:
    """The manifest's branch on the server, without fetching anything.

    Raises RepositoryNotFound, RepositoryDenied, RepositoryUnreachable, RepositoryNotAllowed, or RefNotFound naming
    the branches that are nearest.
    """
    check_allowed(access.settings, repository.url)
    wanted = f"refs/heads/{repository.branch}"
    refs = _list(access, repository, "--symref", "--", repository.url, "HEAD", wanted)
    tip = next((ref for ref, name in refs if name == wanted), None)
    if tip is None:
        raise _no_branch(repository, _list(access, repository, "--heads", "--tags", "--", repository.url))
    return RemoteBranch(tip=tip, head=_head(refs))


def look_at(access: Access, repository: Repository) -> RemoteBranch:
    """The server's default branch, without fetching anything. Its tip is that of any commit when there is none.

    Raises as ``look_up`` does, but for a missing branch.
    """
    check_allowed(access.settings, repository.url)
    refs = _list(access, repository, "--symref", "--", repository.url, "HEAD")
    tip = next((ref for ref, name in refs if name == "HEAD" and ref[:4] != "ref:"), repository.commit or "")
    return RemoteBranch(tip=tip, head=_head(refs))


def look_for(access: Access, repository: Repository, branch: str) -> tuple[str | None, str | None]:
    """The tip of a branch that may be there or not, and the name of the server's default branch, if it names one.

    Raises as ``look_up`` does, but for a missing branch.
    """
    wanted = f"refs/heads/{branch}"
    refs = _list(access, repository, "--symref", "--", repository.url, "HEAD", wanted)
    return next((ref for ref, name in refs if name == wanted), None), _head(refs)


def _head(refs: list[tuple[str, str]]) -> str | None:
    """The name of the server's default branch, if it names one."""
    named = (ref.removeprefix("ref: refs/heads/") for ref, name in refs if ref[:4] == "ref:" and name == "HEAD")
    return next(named, None)


def refusal(access: Access, repository: Repository, error: GitFailed) -> RepositoryError:
    """What git said about a server as an error whose sentence names URL and branch."""
    url = without_credentials(repository.url)
    words = error.words.lower()
    kind, sentence = next(
        (kind, sentence) for signs, kind, sentence in _REFUSALS if not signs or any(sign in words for sign in signs)
    )
    if access.is_for(repository.url):
        sentence = _pinned(access) if sentence == _UNKNOWN_HOST else _WITH_SECRET.get(kind, sentence)
    message = sentence.format(named=f"{url} (branch {repository.branch})", secret=access.secret)
    told = access.redactor.redact_text(error.last_words)
    return kind(f"{message} (git: {told}).", url=url, branch=repository.branch)


def _pinned(access: Access) -> str:
    if not access.pinned:
        return _UNKNOWN_HOST + ", or name it in repository.known_hosts"
    return (
        "The SSH host key of repository {named} is none of repository.known_hosts; ask who runs the server for its "
        "key, and correct the field if it has a new one"
    )


def nearest(wanted: str, names: Iterable[str]) -> str:
    """A hint at what exists: the names most like the wanted one, else the first few, as the end of a sentence."""
    known = sorted(set(names))
    if near := difflib.get_close_matches(wanted, known, n=3, cutoff=0.5):
        return "did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
    listed = ", ".join(known[:_NAMES_MOST])
    return f"it has {listed}{' and more' if len(known) > _NAMES_MOST else ''}." if known else "it has none."


def _list(access: Access, repository: Repository, *arguments: str) -> list[tuple[str, str]]:
    """Rows of git ls-remote."""
    try:
        output = run_git(["ls-remote", *arguments], access.environment(repository.url), seconds=LOOK_SECONDS)
    except GitFailed as error:
        raise refusal(access, repository, error) from None
    except GitStopped:
        url = without_credentials(repository.url)
        raise RepositoryUnreachable(
            f"The server of repository {url} (branch {repository.branch}) did not answer within {LOOK_SECONDS:.0f} s.",
            url=url,
            branch=repository.branch,
        ) from None
    rows = (line.partition("\t") for line in output.splitlines())
    return [(value, name) for value, tab, name in rows if tab]


def _no_branch(repository: Repository, refs: list[tuple[str, str]]) -> RefNotFound:
    url, branch = without_credentials(repository.url), repository.branch
    branches = [name.removeprefix("refs/heads/") for _, name in refs if name.startswith("refs/heads/")]
    if not branches:
        sentence = f"Repository {url} is empty; push branch '{branch}' first."
    elif any(name == f"refs/tags/{branch}" for _, name in refs):
        sentence = (
            f"Repository {url} has no branch '{branch}', only a tag of that name; "
            "name a branch, and the tag's commit in repository.commit."
        )
    else:
        sentence = f"Repository {url} has no branch '{branch}'; {nearest(branch, branches)}"
    return RefNotFound(sentence, url=url, branch=branch)
