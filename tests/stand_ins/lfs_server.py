"""An LFS server for tests beside a git server: the batch protocol as its specification has it, over real connections.

The one server of it that the package registries have does not run with today's versions of what it stands on. What
git-lfs asks it for is asked for here too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.git_servers import Answer, GitServer, commit, git

_BATCH = re.compile(r"/([^/]+)\.git/info/lfs/objects/batch")
_CONTENT = re.compile(r"/[^/]+\.git/info/lfs/contents/([0-9a-f]{64})")


@dataclass
class LfsServer:
    """``contents`` by their SHA-256; ``sent`` replaces what is sent of one, ``elsewhere`` where it is sent from."""

    git: GitServer
    contents: dict[str, bytes] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    elsewhere: str | None = None
    batches: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.git.beside = self.answer

    def add(self, content: bytes) -> bytes:
        """Keep a content; the pointer to it."""
        oid = hashlib.sha256(content).hexdigest()
        self.contents[oid] = content
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()

    def nest(self, files: Callable[[str], Mapping[str, bytes]]) -> None:
        """Make ``top`` with the submodule ``middle``, which has ``inner``; each has a text, and ``files`` of LFS."""
        inner, middle, top = (self.git.root / name for name in ("inner", "middle", "top"))
        for path in (inner, middle, top):
            path.mkdir()
            git(path, "init", "--quiet", "--initial-branch=main")
            (path / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
            for name, content in files(path.name).items():
                (path / name).write_bytes(self.add(content))
            commit(path, "text.txt", f"one\nof {path.name}\n")
        for path, name, url, below in ((middle, "in ner", "../inner", inner), (top, "lib/middle", "../middle", middle)):
            (path / ".gitmodules").write_text(f'[submodule "s"]\n\tpath = {name}\n\turl = {url}\n')
            git(path, "add", ".gitmodules")
            git(path, "update-index", "--add", "--cacheinfo", f"160000,{git(below, 'rev-parse', 'HEAD')},{name}")
            git(path, "commit", "--quiet", "-m", "link")

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        """The answer to a request that is of LFS."""
        if method == "POST" and (match := _BATCH.fullmatch(path)):
            assert headers["Accept"].startswith("application/vnd.git-lfs+json")
            return self._batch(match[1], json.loads(body))
        if method == "GET" and (match := _CONTENT.fullmatch(path)):
            return 200, {"Content-Type": "application/octet-stream"}, self.sent.get(match[1]) or self.contents[match[1]]
        return None

    def _batch(self, repository: str, asked: dict[str, object]) -> Answer:
        self.batches.append(asked)
        assert asked["operation"] == "download"
        objects = []
        base = self.elsewhere or self.git.url(f"{repository}.git/info/lfs")
        for each in asked["objects"]:  # type: ignore[attr-defined]
            if each["oid"] in self.contents:
                actions = {"download": {"href": f"{base}/contents/{each['oid']}"}}
                objects.append({**each, "actions": actions})
            else:
                objects.append({**each, "error": {"code": 404, "message": "Object does not exist"}})
        answer = json.dumps({"transfer": "basic", "objects": objects, "hash_algo": "sha256"}).encode()
        return 200, {"Content-Type": "application/vnd.git-lfs+json"}, answer
