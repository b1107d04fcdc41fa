"""What asks a git host to merge a branch: GitHub's and Gitea's pull requests, GitLab's merge requests, as published.

Opened once: an attempt whose answer was lost has left one, which the next attempt finds by its branches. A token goes
to the API that the operator has named for this host, and follows no redirect from there.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from foundation.errors import HostNotReady, PushRefused, RepositoryUnreachable
from foundation.git.hosts import GitHost
from foundation.proxies import proxy_for
from storage.redaction import Redactor

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
_BODY_BYTES = 4 * 2**20
_PAGES_MOST = 4
_PAGE = 50
_WORDS_CHARS = 500
_URL_CHARS = 500

_OK, _CREATED, _UNAUTHORISED, _FORBIDDEN, _MISSING = 200, 201, 401, 403, 404
# Somebody, perhaps an earlier attempt, has one open for these branches.
_THERE = frozenset({409, 422})
_LATER = frozenset({408, 425, 429, *range(500, 600)})
_REDIRECTS = range(300, 400)


@dataclass(frozen=True)
class Opened:
    """A pull request: its number in the repository, and its page."""

    number: int
    url: str


@dataclass(frozen=True)
class Wanted:
    """What is asked for: ``head`` is to be merged into ``base``."""

    head: str
    base: str
    title: str
    body: str = ""
    draft: bool = False


def open_pull_request(host: GitHost, repository: str, token: str, wanted: Wanted) -> Opened:
    """The pull request of these branches, opened if none is open. ``repository`` is its name on the host.

    Raises PushRefused, or RepositoryUnreachable when trying again can help; no sentence holds the token.
    """
    with _Api(host, repository, token) as api:
        if found := api.find(wanted):
            return found
        answer = api.create(wanted)
        if answer.status in _THERE and (found := api.find(wanted)):
            return found
        if answer.status not in {_OK, _CREATED}:
            raise api.refused(answer, "opens no pull request")
        return api.read(answer.body)


@dataclass(frozen=True)
class _Answer:
    status: int
    body: Any


@dataclass
class _Api:
    """The part of a git host's API that is for pull requests, with what its kinds have different names for."""

    host: GitHost
    repository: str
    token: str = field(repr=False)

    def __enter__(self) -> Self:
        try:
            context = ssl.create_default_context(cafile=self.host.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise HostNotReady(
                f"The ca_file {self.host.ca_file} of TASKYARD_GIT_HOSTS cannot be read: {error}"
            ) from None
        self._client = httpx.Client(
            verify=context,
            proxy=proxy_for(self.host.api),
            trust_env=False,
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            headers=self._headers(),
        )
        self._redactor = Redactor({"token": self.token})
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    # --- what the kinds have in common

    def find(self, wanted: Wanted) -> Opened | None:
        """The open pull request from the one branch into the other."""
        for page in range(1, _PAGES_MOST + 1):
            answer = self._ask("GET", self._collection, params=self._filter(wanted) | {"page": str(page)})
            if answer.status != _OK or not isinstance(answer.body, list):
                raise self.refused(answer, "does not say which pull requests there are")
            for row in answer.body:
                if isinstance(row, Mapping) and self._branches(row) == (wanted.head, wanted.base):
                    return self.read(row)
            # A server may give fewer on a page than it was asked for.
            if not answer.body:
                break
        return None

    def create(self, wanted: Wanted) -> _Answer:
        """Ask for a new one."""
        return self._ask("POST", self._collection, body=self._wanted(wanted))

    def read(self, row: Any) -> Opened:
        """The pull request that an answer has. Raises PushRefused."""
        number = row.get("iid" if self._is_gitlab else "number") if isinstance(row, Mapping) else None
        url = row.get("web_url" if self._is_gitlab else "html_url") if isinstance(row, Mapping) else None
        if type(number) is not int or not 0 < number < 2**63 or not _is_page(url):
            raise PushRefused(f"{self._told} answers in a form that is not known; look at its 'api' and 'kind'.")
        return Opened(number, str(url))

    def refused(self, answer: _Answer, what: str) -> PushRefused:
        """What an answer means that is none of those that were hoped for."""
        said = self._redactor.redact_text(_said(answer.body))[:_WORDS_CHARS]
        if answer.status in {_UNAUTHORISED, _FORBIDDEN}:
            hint = "see that the token is valid and may open pull requests"
        elif answer.status == _MISSING:
            hint = "see that the token may see the repository"
        elif answer.status in _REDIRECTS:
            hint = "it sends elsewhere, which is not followed: write repository.url as the repository is called now"
        else:
            hint = "look at what it says"
        told = f": {said}" if said else ""
        return PushRefused(f"{self._told} {what}; {hint} (status {answer.status}{told}).")

    @property
    def _told(self) -> str:
        return f"The git host at {self.host.api}"

    @property
    def _is_gitlab(self) -> bool:
        return self.host.kind == "gitlab"

    def _ask(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> _Answer:
        deadline = time.monotonic() + _ANSWER_SECONDS
        try:
            with self._client.stream(method, self.host.api + path, params=params, json=body) as response:
                read = bytearray()
                for chunk in response.iter_bytes():
                    read += chunk
                    if len(read) > _BODY_BYTES or time.monotonic() > deadline:
                        raise RepositoryUnreachable(f"{self._told} answers without an end.")
                status = response.status_code
        except httpx.HTTPError as error:
            # Its words may repeat what was sent.
            raise RepositoryUnreachable(f"{self._told} cannot be reached ({type(error).__name__}).") from None
        if status in _LATER:
            raise RepositoryUnreachable(f"{self._told} answers with status {status}.")
        try:
            return _Answer(status, json.loads(bytes(read) or b"null"))
        except (ValueError, RecursionError):
            return _Answer(status, None)

    # --- where they differ

    def _headers(self) -> dict[str, str]:
        match self.host.kind:
            case "github":
                return {
                    "Authorization": f"Bearer {self.token}",
                    "Accept": "application/vnd.github+json",
                    "X-GitHub-Api-Version": "2022-11-28",
                    "User-Agent": "taskyard",
                }
            case "gitlab":
                return {"PRIVATE-TOKEN": self.token, "User-Agent": "taskyard"}
            case "gitea":
                return {"Authorization": f"token {self.token}", "User-Agent": "taskyard"}

    @property
    def _collection(self) -> str:
        if self._is_gitlab:
            return f"/projects/{quote(self.repository, safe='')}/merge_requests"
        return f"/repos/{quote(self.repository)}/pulls"

    def _filter(self, wanted: Wanted) -> dict[str, str]:
        match self.host.kind:
            case "github":
                owner = self.repository.partition("/")[0]
                return {"state": "open", "head": f"{owner}:{wanted.head}", "base": wanted.base, "per_page": str(_PAGE)}
            case "gitlab":
                return {
                    "state": "opened",
                    "source_branch": wanted.head,
                    "target_branch": wanted.base,
                    "per_page": str(_PAGE),
                }
            case "gitea":
                # It knows no filter by branch; the newest come first.
                return {"state": "open", "limit": str(_PAGE)}

    def _wanted(self, wanted: Wanted) -> dict[str, Any]:
        match self.host.kind:
            case "github":
                return {
                    "title": wanted.title,
                    "head": wanted.head,
                    "base": wanted.base,
                    "body": wanted.body,
                    "draft": wanted.draft,
                }
            case "gitlab":
                return {
                    "title": f"Draft: {wanted.title}" if wanted.draft else wanted.title,
                    "source_branch": wanted.head,
                    "target_branch": wanted.base,
                    "description": wanted.body,
                }
            case "gitea":
                return {
                    "title": f"WIP: {wanted.title}" if wanted.draft else wanted.title,
                    "head": wanted.head,
                    "base": wanted.base,
                    "body": wanted.body,
                }

    def _branches(self, row: Mapping[str, Any]) -> tuple[Any, Any]:
        """Names of the branches that a row of a list is about; those of another repository are none."""
        if self._is_gitlab:
            same = row.get("source_project_id") == row.get("target_project_id")
            return (row.get("source_branch"), row.get("target_branch")) if same else (None, None)
        head, base = row.get("head"), row.get("base")
        if not isinstance(head, Mapping) or not isinstance(base, Mapping):
            return None, None
        of, to = head.get("repo"), base.get("repo")
        if isinstance(of, Mapping) and isinstance(to, Mapping) and of.get("id") != to.get("id"):
            return None, None
        return head.get("ref"), base.get("ref")


def _is_page(url: Any) -> bool:
    if not isinstance(url, str) or len(url) > _URL_CHARS or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"https", "http"} and bool(parts.hostname) and "@" not in parts.netloc


def _said(body: Any) -> str:
    """What the body of a refusal says, in one line."""
    if not isinstance(body, Mapping):
        return ""
    said = [body.get("message"), body.get("error"), body.get("error_description")]
    errors = body.get("errors")
    if isinstance(errors, list):
        said += [each.get("message") if isinstance(each, Mapping) else each for each in errors]
    text = "; ".join(each if isinstance(each, str) else json.dumps(each) for each in said if each)
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
