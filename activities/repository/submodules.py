"""The submodules of a repository, each cloned into its place by the rules that hold for the repository itself.

What a commit says of its submodules is hostile: names are not used, paths are those that git has checked out itself,
and URLs are held to the rules of a manifest. A secret of the run is shown to its own server alone.
"""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from activities.repository.git import GitFailed, local_environment, run_git
from activities.repository.mirror import Mirror, disk_use, needed
from activities.repository.remote import RemoteBranch, check_allowed, look_at
from foundation.errors import RefNotFound, RepositoryError, RepositoryNotAllowed
from foundation.units import format_size
from foundation.urls import without_credentials
from workflows.runs.requests import StagedSubmodule
from workflows.specs.manifest import MAX_PATH
from workflows.specs.manifest import Repository as StrictRepository
from workflows.specs.wire import Repository

SUBMODULES_MOST = 64
DEPTH_MOST = 5
_TOO_MANY = f"there are more than {SUBMODULES_MOST} submodules, or some lie deeper than {DEPTH_MOST} in one another"

_MODULES_BYTES = 256 * 1024
_LINK_MODE = "160000"
_SCP = re.compile(r"([^/:]+:)(?!//)(.*)")
_KEY = re.compile(r"submodule\.(.*)\.(path|url|update)", re.DOTALL)


@dataclass(frozen=True)
class _Place:
    """A clone that may have submodules: where it came from, and its path in the workspace (empty: the top)."""

    mirror: Mirror
    path: str
    depth: int


@dataclass(frozen=True)
class Submodules:
    """Clones the submodules of the clone ``tree`` of ``mirror``. All together may take ``most`` bytes.

    ``checked_out`` is called for each clone with its mirror, the mirror's path, and its own.
    """

    mirror: Mirror
    tree: Path
    staging: Path
    most: int
    checked_out: Callable[[Mirror, Path, Path], None]

    def clone(self) -> list[StagedSubmodule]:
        """Clone them all, those of submodules too. Raises RepositoryError, whose sentence names the path."""
        found: list[StagedSubmodule] = []
        taken = 0
        pending = [_Place(self.mirror, "", 0)]
        while pending:
            place = pending.pop(0)
            for path, commit, url in self._listed(place):
                name = f"{place.path}/{path}" if place.path else path
                with _named(name, self.mirror.repository):
                    if len(found) >= SUBMODULES_MOST or place.depth >= DEPTH_MOST or len(name) > MAX_PATH:
                        raise RepositoryError(_TOO_MANY)
                    mirror = self._mirror(place, commit, url)
                    self._clone(mirror, commit, name)
                    taken += disk_use(self.tree / name)
                    if taken > self.most:
                        raise RepositoryError(
                            f"the submodules do not fit on a disk of {format_size(self.most)}; give more in vm.disk"
                        )
                found.append(
                    StagedSubmodule(path=name, url=mirror.repository.url, commit=commit, mirror=mirror.path.name)
                )
                pending.append(_Place(mirror, name, place.depth + 1))
        return found

    def _listed(self, place: _Place) -> list[tuple[str, str, str]]:
        """Path, commit and URL of each submodule of a clone, by path."""
        clone = self.tree / place.path
        listing = _local(clone, "ls-files", "--stage", "-z").split("\0")
        rows = [row.partition("\t") for row in listing if row.startswith(_LINK_MODE)]
        links = {path: facts.split(" ")[1] for facts, _, path in rows}
        if not links:
            return []
        # Whoever is in the clone finds all of its submodules in use.
        _local(clone, "config", "submodule.active", ".")
        urls = self._urls(clone)
        listed = []
        for path, commit in sorted(links.items()):
            if path not in urls:
                with _named(path, place.mirror.repository):
                    raise RepositoryError(".gitmodules has no URL for it; correct it there")
            if (url := urls[path]) is not None:
                listed.append((path, commit, url))
        return listed

    def _urls(self, clone: Path) -> dict[str, str | None]:
        """The URLs of the commit's .gitmodules by path; None for those that are not to be fetched."""
        blob = "HEAD:.gitmodules"
        try:
            size = int(_local(clone, "cat-file", "-s", blob))
        except GitFailed:
            return {}
        if size > _MODULES_BYTES:
            raise RepositoryError(f"The .gitmodules of {self.mirror.repository.url} is too large to be read.")
        fields: dict[str, dict[str, str]] = {}
        for row in _local(clone, "config", "--no-includes", "--null", "--blob", blob, "--list").split("\0"):
            key, _, value = row.partition("\n")
            if match := _KEY.fullmatch(key):
                fields.setdefault(match[1], {})[match[2]] = value
        return {
            each["path"]: None if each.get("update") == "none" else each["url"]
            for each in fields.values()
            if {"path", "url"} <= each.keys()
        }

    def _mirror(self, place: _Place, commit: str, url: str) -> Mirror:
        above = place.mirror.repository.url
        url = resolved(above, url)
        if url.startswith("file:") and not above.startswith("file:"):
            raise RepositoryNotAllowed("its URL names a directory of this host")
        check_allowed(self.mirror.settings, url)
        repository = Repository(url=url, branch="HEAD", commit=commit)
        return replace(self.mirror, repository=repository, file_bytes=self.most)

    def _clone(self, mirror: Mirror, commit: str, name: str) -> None:
        target = _empty_place(self.tree, name)
        mirror.report(f"Cloning submodule {name} from {without_credentials(mirror.repository.url)}")
        branch = look_at(mirror.access, mirror.repository)
        mirror = replace(mirror, repository=mirror.repository.model_copy(update={"branch": branch.head or "main"}))
        with needed(mirror.path, self.staging):
            try:
                self._clone_from(mirror, branch, commit, target, anew=False)
            except GitFailed:
                shutil.rmtree(target, ignore_errors=True)
                self._clone_from(mirror, branch, commit, target, anew=True)

    def _clone_from(self, mirror: Mirror, branch: RemoteBranch, commit: str, target: Path, *, anew: bool) -> None:
        url = without_credentials(mirror.repository.url)
        with mirror.refreshed(branch, anew=anew) as path:
            try:
                mirror.commit(path, branch)
            except RefNotFound:
                raise RefNotFound(f"{url} has no commit {commit}; push it there") from None
            options = ["--quiet", "--local", "--no-checkout"]
            run_git(["clone", *options, "--", str(path), str(target)], local_environment())
            _local(target, "config", "remote.origin.url", url)
            _local(target, "checkout", "--force", "--detach", commit, "--")
            self.checked_out(mirror, path, target)


def resolved(above: str, url: str) -> str:
    """The URL of a submodule, which may be relative to that of the repository it is in. Raises RepositoryNotAllowed."""
    if url.startswith(("./", "../")):
        url = _beside(above, url)
    try:
        # The branch is no part of it.
        return StrictRepository(url=without_credentials(url), branch="main").url
    except ValidationError as error:
        reason = str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
        raise RepositoryNotAllowed(f"its URL {reason}") from None


def _beside(above: str, url: str) -> str:
    """A relative URL, which never leaves the host of the repository."""
    if match := _SCP.fullmatch(above):
        start, path = match[1], match[2]
    else:
        parts = urlsplit(above)
        start, path = f"{parts.scheme}://{parts.netloc}/", parts.path.lstrip("/")
    names = [name for name in path.split("/") if name]
    for name in url.split("/"):
        if name == "..":
            if not names:
                raise RepositoryNotAllowed("its relative URL leads above the server's own")
            names.pop()
        elif name not in {"", "."}:
            names.append(name)
    return start + ("/" if match and path.startswith("/") else "") + "/".join(names)


def _empty_place(tree: Path, name: str) -> Path:
    """The directory that git has made for a submodule, when no link leads to it and nothing is in it."""
    place = tree
    for part in name.split("/"):
        place /= part
        if part.lower() == ".git" or part in {"", ".", ".."} or not _is_directory(place):
            raise RepositoryNotAllowed("its path is no directory of the repository")
    if any(place.iterdir()):
        raise RepositoryNotAllowed("its path is taken")
    # Git clones into it anew.
    shutil.rmtree(place)
    return place


def _is_directory(place: Path) -> bool:
    try:
        return stat.S_ISDIR(place.lstat().st_mode)
    except OSError:
        return False


@contextmanager
def _named(name: str, repository: Repository) -> Iterator[None]:
    """Errors of the block begin with the submodule that they are of."""
    start = f"Submodule {name} of repository {without_credentials(repository.url)}"
    try:
        yield
    except RepositoryError as error:
        raise type(error)(f"{start}: {error.message.rstrip('.')}.", **error.details) from None
    except GitFailed as error:
        raise RepositoryError(f"{start} cannot be checked out (git: {error.last_words}).") from None


def _local(clone: Path, *arguments: str) -> str:
    return run_git(["-C", str(clone), *arguments], local_environment())
