"""A git host on loopback: git's own http-backend, and beside it the part of a host's API that is for pull requests.

The API is a stand-in, which follows what GitHub, GitLab and Gitea publish of theirs: paths, fields that must be there,
who is let in, and that a second request for the same branches is refused. It looks at the real branches.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote

from foundation.git.hosts import GitHost, Kind
from tests.git_servers import Answer, GitServer, commit, git

_PULLS = re.compile(r"/api/v3/repos/([^/]+/[^/]+)/pulls|/api/v1/repos/([^/]+/[^/]+)/pulls")
_MERGES = re.compile(r"/api/v4/projects/([^/]+)/merge_requests")


@dataclass
class GitHostStandIn:
    """A host with one private repository, ``org/repo``, which ``token`` opens. ``lost`` answers are not given."""

    kind: Kind
    root: Path
    token: str
    lost: int = 0
    pulls: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    refuses: Answer | None = None

    def __post_init__(self) -> None:
        self.server = GitServer(self.root, beside=self._beside)
        self.server.private["org"] = {f"x-access-token:{self.token}"}

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.repository.mkdir(parents=True)
        git(self.repository, "init", "--quiet", "--initial-branch=main")
        git(self.repository, "config", "http.receivepack", "true")
        git(self.repository, "config", "receive.denyCurrentBranch", "updateInstead")
        commit(self.repository, "app.py", "one\ntwo\nthree\n")
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__(None, None, None)

    @property
    def repository(self) -> Path:
        return self.root / "org" / "repo.git"

    @property
    def url(self) -> str:
        return self.server.url("org/repo.git")

    def host(self) -> GitHost:
        """As the settings of an operator name it."""
        return GitHost(kind=self.kind, url=self.server.url("").rstrip("/"))

    def tip(self, branch: str) -> str:
        return git(self.repository, "for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}")

    def _beside(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if not path.startswith("/api/"):
            return None
        headers = {name.lower(): value for name, value in headers.items()}
        wanted = {
            "github": ("authorization", f"Bearer {self.token}", _PULLS, 1),
            "gitea": ("authorization", f"token {self.token}", _PULLS, 2),
            "gitlab": ("private-token", self.token, _MERGES, 1),
        }
        header, shown, paths, group = wanted[self.kind]
        match = paths.fullmatch(path)
        if headers.get(header) != shown:
            return self._json(401, {"message": "Bad credentials"})
        if not match or unquote(match[group] or "") != "org/repo":
            return self._json(404, {"message": "Not Found"})
        return self.refuses or self._answered(method, body)

    def _answered(self, method: str, body: bytes) -> Answer:
        if method == "GET":
            return self._json(200, self._listed(parse_qs(self.server.asked[-1].partition("?")[2])))
        answer = self._created(json.loads(body))
        if not self.lost:
            return answer
        self.lost -= 1
        return self._json(502, {"message": "the answer was lost"})

    def _listed(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        opened = [each for each in self.pulls if each["state"] in {"open", "opened"}] if query["page"] == ["1"] else []
        if self.kind == "github" and "head" in query:
            return [each for each in opened if query["head"] == [f"org:{each['head']['ref']}"]]
        if self.kind == "gitlab" and "source_branch" in query:
            return [each for each in opened if query["source_branch"] == [each["source_branch"]]]
        return opened

    def _created(self, body: dict[str, Any]) -> Answer:
        self.bodies.append(body)
        head, base = ("source_branch", "target_branch") if self.kind == "gitlab" else ("head", "base")
        missing = [name for name in ("title", head, base) if not isinstance(body.get(name), str) or not body[name]]
        if missing:
            return self._json(400 if self.kind == "gitlab" else 422, {"message": f"{missing[0]} is missing"})
        if not self.tip(body[head]) or not self.tip(body[base]) or body[head] == body[base]:
            return self._json(422, {"message": "Validation Failed", "errors": [{"message": "no such branch"}]})
        number = len(self.pulls) + 1
        for each in self.pulls:
            there = (each[head], each[base]) if self.kind == "gitlab" else (each["head"]["ref"], each["base"]["ref"])
            if there == (body[head], body[base]) and each["state"] in {"open", "opened"}:
                return self._json(422 if self.kind == "github" else 409, {"message": "A pull request already exists"})
        self.pulls.append(self._row(number, body[head], body[base], body["title"]))
        return self._json(201, self.pulls[-1])

    def _row(self, number: int, head: str, base: str, title: str) -> dict[str, Any]:
        if self.kind == "gitlab":
            return {
                "id": number + 1000,
                "iid": number,
                "web_url": f"https://git.example.org/org/repo/-/merge_requests/{number}",
                "state": "opened",
                "title": title,
                "source_branch": head,
                "target_branch": base,
                "source_project_id": 7,
                "target_project_id": 7,
                "sha": self.tip(head),
            }
        sides = {"head": head, "base": base}
        return {
            "id": number + 1000,
            "number": number,
            "html_url": f"https://git.example.org/org/repo/pull/{number}",
            "state": "open",
            "title": title,
            **{side: {"ref": ref, "sha": self.tip(ref), "repo": {"id": 7}} for side, ref in sides.items()},
        }

    @staticmethod
    def _json(status: int, body: Any) -> Answer:
        return status, {"Content-Type": "application/json"}, json.dumps(body).encode()
