"""Bare mirrors of repositories on the host: one for each URL and realm, refreshed under a lock, re-made when damaged.

A realm is what may read a server alike: runs with one reference to credentials, or those with none. No run is served
from what another one could fetch and it could not.
Together they stay below a limit: the longest unused go first, and none that a run of this host still needs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from activities.artifacts.confined_git import object_format
from activities.repository.access import Access
from activities.repository.git import GitFailed, Report, local_environment, run_git
from activities.repository.remote import RemoteBranch, refusal
from foundation import locks
from foundation.errors import RefNotFound, RepositoryNotFound, RepositoryUnreachable
from foundation.settings import Settings
from foundation.units import parse_size
from foundation.urls import without_credentials
from workflows.specs.wire import Repository

_REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_PACKS_MOST = 30
_FULL_COMMIT_LENGTHS = (40, 64)
# The result of a staging, which begins with a line of JSON about the repository.
STAGED = "staged.json"

_NEEDED = "mirror"
_NAME = re.compile(r"[0-9a-f]{64}")


def mirror_path(settings: Settings, url: str, realm: str = "") -> Path:
    """Where the mirror of a URL lies. A directory of this name is complete."""
    # No URL holds a NUL byte.
    return settings.mirrors / hashlib.sha256(f"{url}\0{realm}".encode() if realm else url.encode()).hexdigest()


@contextmanager
def reading(settings: Settings, url: str, name: str = "", report: Report = lambda _: None) -> Iterator[Path]:
    """The mirror of a URL, which nobody re-makes while the block runs. Raises RepositoryNotFound when there is none.

    ``name`` is that of the mirror's directory, for one that was filled with credentials.
    """
    path = settings.mirrors / name if _NAME.fullmatch(name) else mirror_path(settings, url)
    with _locked(path, "use", report, shared=True):
        os.utime(path.with_suffix(".use"))
        if not path.is_dir():
            raise RepositoryNotFound(f"This host has no mirror of {without_credentials(url)} any more.")
        yield path


@contextmanager
def needed(mirror: Path, staging: Path) -> Iterator[None]:
    """Keep a mirror for a run that is being staged in the directory ``staging``, from the block on until it is staged.

    What is written there is read by ``evict``, as is the result that stays there when the run is staged.
    """
    first = not (staging / _NEEDED).exists()
    with (staging / _NEEDED).open("a") as file:
        file.write(f"{mirror.name}\n")
    yield
    if first:
        (staging / _NEEDED).unlink()


def evict(settings: Settings) -> list[Path]:
    """Remove the longest unused mirrors until the rest is within the limit; the paths of those that went.

    One that is read or fetched into, or that a run of this host was staged from, stays.
    """
    for left in settings.mirrors.glob(".[0-9a-f]*.*"):
        _remove_draft(left)
    limit = parse_size(settings.mirror_limit)
    found = [path for path in settings.mirrors.glob("[0-9a-f]*") if path.is_dir()]
    sizes = {path: disk_use(path) for path in found}
    total = sum(sizes.values())
    kept = _kept(settings)
    gone = []
    for path in sorted(found, key=_last_used):
        if total <= limit:
            break
        if path.name not in kept and _remove(path):
            total -= sizes[path]
            gone.append(path)
    return gone


@dataclass(frozen=True)
class Mirror:
    """The mirror of one repository of a manifest."""

    settings: Settings
    repository: Repository
    access: Access
    report: Report
    # The most that a fetch may write into one file.
    file_bytes: int | None = None

    @property
    def path(self) -> Path:
        return mirror_path(self.settings, self.repository.url, self.access.realm_of(self.repository.url))

    @contextmanager
    def refreshed(self, branch: RemoteBranch, *, anew: bool = False) -> Iterator[Path]:
        """The mirror, brought up to date (or made ``anew``), which nobody re-makes while the block runs.

        Raises the errors of ``activities.repository.remote``. Only one process at a time brings a mirror up to date; a
        fetch that was killed leaves the mirror as it was, a first one that was killed leaves none.
        """
        path = self.path
        with _locked(path, "fetch", self.report):
            for stale in path.parent.glob(f".{path.name}.*"):
                shutil.rmtree(stale, ignore_errors=True)
            if anew or not path.is_dir() or not self._refresh(path, branch):
                self._make(path, branch)
        for _ in evict(self.settings):
            self.report(f"Removed the longest unused mirror to stay below {self.settings.mirror_limit}")
        with reading(self.settings, self.repository.url, path.name, self.report):
            yield path

    def commit(self, path: Path, branch: RemoteBranch) -> str:
        """The full id of the commit to check out. Raises RefNotFound."""
        # The branch may have moved between the look and the fetch; what was fetched counts.
        wanted = self.repository.commit or f"refs/heads/{self.repository.branch}"
        found = _resolve(path, wanted)
        if found is None and len(wanted) in _FULL_COMMIT_LENGTHS:
            # A commit on no branch (of a pull request, say): some servers give it when asked by its id.
            with suppress(GitFailed):
                self._fetch(path, wanted)
            found = _resolve(path, wanted)
        if found is None:
            url = without_credentials(self.repository.url)
            raise RefNotFound(
                f"Repository {url} has no commit {wanted}, or more than one that starts so "
                f"(branch {self.repository.branch} is at {branch.tip}); correct repository.commit.",
                url=url,
                branch=self.repository.branch,
                commit=wanted,
            )
        return found

    def _refresh(self, path: Path, branch: RemoteBranch) -> bool:
        """Fetch into the existing mirror. False when the mirror, not the server, is at fault."""
        try:
            self._fetch(path, *_REFSPECS)
            self._point_head(path, branch)
            self._tidy(path)
        except GitFailed as error:
            error_of_project = refusal(self.access, self.repository, error)
            if isinstance(error_of_project, RepositoryUnreachable):
                raise error_of_project from None
            self.report(f"The mirror is damaged and is made anew ({error.last_words})")
            return False
        return (
            _resolve(path, branch.tip) is not None or _resolve(path, f"refs/heads/{self.repository.branch}") is not None
        )

    def _make(self, path: Path, branch: RemoteBranch) -> None:
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            made_with = f"--object-format={object_format(branch.tip)}"
            run_git(["init", "--quiet", "--bare", made_with, "--", str(draft)], local_environment())
            try:
                self._fetch(draft, *_REFSPECS)
            except GitFailed as error:
                raise refusal(self.access, self.repository, error) from None
            self._point_head(draft, branch)
            with _locked(path, "use", self.report):
                shutil.rmtree(path, ignore_errors=True)
                draft.rename(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _fetch(self, path: Path, *refspecs: str) -> None:
        options = ["--progress", "--force", "--no-tags", "--no-write-fetch-head"]
        if refspecs == _REFSPECS:
            options.append("--prune")
        run_git(
            ["--git-dir", str(path), "fetch", *options, "--", self.repository.url, *refspecs],
            self.access.environment(self.repository.url),
            report=self.report,
            file_bytes=self.file_bytes,
        )

    def _point_head(self, path: Path, branch: RemoteBranch) -> None:
        head = f"refs/heads/{branch.head or self.repository.branch}"
        run_git(["--git-dir", str(path), "symbolic-ref", "HEAD", head], local_environment())

    def _tidy(self, path: Path) -> None:
        """Join many packs into one; what no branch holds any more is kept, since a run may be based on it."""
        if len(list((path / "objects" / "pack").glob("*.pack"))) > _PACKS_MOST:
            run_git(["--git-dir", str(path), "repack", "-a", "-d", "-q", "--keep-unreachable"], local_environment())


def _resolve(path: Path, name: str) -> str | None:
    """The full id of the commit that a ref or a prefix of an id names in the mirror."""
    try:
        found = run_git(
            ["--git-dir", str(path), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"],
            local_environment(),
        ).strip()
    except GitFailed:
        return None
    # A branch may be named like a short commit id; only the commit counts.
    return found if name.startswith("refs/") or found.startswith(name.lower()) else None


def _kept(settings: Settings) -> set[str]:
    """Names of the mirrors that runs of this host were, or are being, staged from."""
    names = set()
    for file in settings.staging.glob(f"*/{_NEEDED}"):
        with suppress(FileNotFoundError):
            names.update(file.read_text().split())
    for file in settings.staging.glob(f"*/{STAGED}"):
        with suppress(FileNotFoundError, ValueError, LookupError):
            key, _, result = file.read_text().partition("\n")
            url = json.loads(key)["repository"]["url"]
            staged = json.loads(result)
            names.add(staged.get("mirror") or mirror_path(settings, url).name)
            names.update(submodule["mirror"] for submodule in staged.get("submodules", ()))
    return names


def _last_used(path: Path) -> float:
    try:
        return path.with_suffix(".use").stat().st_mtime
    except FileNotFoundError:
        return path.stat().st_mtime


def disk_use(directory: Path) -> int:
    """Bytes that the files of a directory take on the disk."""
    total = 0
    for above, _, names in os.walk(directory):
        for name in names:
            # A fetch may be under way.
            with suppress(FileNotFoundError):
                total += Path(above, name).lstat().st_blocks * 512
    return total


def _remove(path: Path) -> bool:
    """Remove a mirror that nobody holds at this moment."""
    with ExitStack() as stack:
        if not all(_lock_now(path, what, stack) for what in ("fetch", "use")):
            return False
        # Under a name that is taken for what an interrupted fetch left, in case this is interrupted.
        leaving = path.with_name(f".{path.name}.gone")
        path.rename(leaving)
        shutil.rmtree(leaving, ignore_errors=True)
    return True


def _remove_draft(left: Path) -> None:
    """Remove what a killed fetch or removal left, unless somebody is at work on its mirror at this moment."""
    with ExitStack() as stack:
        if _lock_now(left.parent / left.name.split(".")[1], "fetch", stack):
            shutil.rmtree(left, ignore_errors=True)


def _lock_now(path: Path, what: str, stack: ExitStack) -> bool:
    """Take a lock of a mirror for the stack's time, if nobody has it."""
    return stack.enter_context(locks.held(path.with_suffix(f".{what}"), patience=0))


@contextmanager
def _locked(path: Path, what: str, report: Report, *, shared: bool = False) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)

    def busy() -> None:
        report("Waiting for another run of the same repository")

    # A step may be cancelled while it waits.
    with locks.held(path.with_suffix(f".{what}"), shared=shared, patience=math.inf, busy=busy):
        yield
