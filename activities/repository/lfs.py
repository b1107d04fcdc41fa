"""Contents of git LFS: fetched by git-lfs into the mirror, checked, and laid into a clone in place of its pointers.

git-lfs sees nothing of the repository: it is given pointers that are written here, in a repository of its own, and the
one server that they are asked from. So no configuration that somebody has committed says where it goes.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from activities.artifacts.pointers import POINTER_BYTES, Pointer, pointer
from activities.repository.git import GitFailed, local_environment, run_git
from activities.repository.mirror import Mirror
from activities.repository.remote import refusal
from foundation.errors import HostNotReady, RepositoryError, RepositoryNotAllowed, RepositoryUnreachable
from foundation.units import format_size
from foundation.urls import has_credentials, without_credentials
from guest.programs import workspace_program

_LFS = Path(".git", "lfs")
_OBJECTS = _LFS / "objects"
_FILTER = "lfs-filter"
_CONTENT = re.compile(r"[0-9a-f]{64}")
_CONFIG_BYTES = 64 * 1024
_IDENTITY = {
    f"GIT_{who}_{what}": "taskyard" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}  # fmt: skip
# Of git-lfs itself: nothing but plain downloads, and an end to each wait.
_SETTINGS = {
    "lfs.basictransfersonly": "true",
    "lfs.ssh.automultiplex": "false",
    "lfs.skipdownloaderrors": "false",
    "lfs.dialtimeout": "10",
    "lfs.tlstimeout": "10",
    "lfs.activitytimeout": "30",
    "lfs.transfer.maxretries": "3",
    "lfs.transfer.maxretrydelay": "3",
}


def fill(mirror: Mirror, path: Path, clone: Path, staging: Path, most: int) -> None:
    """Lay contents in the places of the pointers that are checked out in a clone of the mirror at ``path``.

    The clone keeps them too, with a filter by which git in a machine knows them again. Together they may take ``most``
    bytes. Raises RepositoryError, or HostNotReady when git-lfs is not installed.
    """
    found = _pointers(clone)
    if not found:
        return
    wanted = set(found.values())
    size = sum(each.size for each in wanted) + sum(each.size for each in found.values())
    if size > most:
        raise _unfilled(
            mirror,
            f"need {format_size(size)}, kept and checked out, of {format_size(most)}; give more in vm.disk",
        )
    store = path / "lfs" / "objects"
    missing = {each for each in wanted if not _is_there(store, each)}
    failed: RepositoryError | None = None
    if missing:
        # They lie in the mirror, in the tree, and twice in the image.
        need, free = sum(each.size for each in missing) + 2 * size, shutil.disk_usage(path).free
        if need > free:
            have = f"{format_size(free)} of this host's disk are free"
            raise _unfilled(mirror, f"need {format_size(need)} while they are staged, and {have}; make room there")
        mirror.report(f"Fetching {len(missing)} contents of git LFS, {format_size(sum(each.size for each in missing))}")
        failed = _fetch(mirror, path, clone, staging, missing)
    for name, each in found.items():
        if not _is_there(store, each):
            said = failed.message if failed else "its server has another one"
            kind = RepositoryUnreachable if isinstance(failed, RepositoryUnreachable) else RepositoryError
            raise _unfilled(mirror, f"cannot be had: that of {name} is missing ({said.rstrip('.')})", kind)
    _lay(store, wanted, clone)
    for name in found:
        (clone / name).unlink()
    run_git(["-C", str(clone), "checkout", "--force", "--", "."], local_environment())


def _pointers(clone: Path) -> dict[str, Pointer]:
    """The pointers in the work tree, by path, of which git's attributes say that they are of LFS."""
    listing = run_git(["-C", str(clone), "ls-files", "-z"], local_environment()).split("\0")[:-1]
    found = {}
    for name in listing:
        status = (clone / name).lstat()
        small = stat.S_ISREG(status.st_mode) and status.st_size <= POINTER_BYTES
        if small and (each := pointer((clone / name).read_bytes())) is not None:
            found[name] = each
    if not found:
        return {}
    names = b"".join(os.fsencode(name) + b"\0" for name in found)
    rows = run_git(["-C", str(clone), "check-attr", "-z", "--stdin", "filter"], local_environment(), input=names).split(
        "\0"
    )
    attributes = dict(zip(rows[::3], rows[2::3], strict=False))
    return {name: each for name, each in found.items() if attributes.get(name) == "lfs"}


def _is_there(store: Path, each: Pointer) -> bool:
    place = store / each.place
    if not place.is_file():
        return False
    if each.is_of(place):
        return True
    place.unlink()
    return False


def _fetch(
    mirror: Mirror, path: Path, clone: Path, staging: Path, missing: Iterable[Pointer]
) -> RepositoryError | None:
    """Have git-lfs fetch contents into the mirror. How it failed; what is there is looked at after it."""
    if shutil.which("git-lfs") is None:
        raise HostNotReady("git-lfs is not installed on this host; install it ('sandbox doctor' names the package).")
    scratch = staging / "lfs"
    shutil.rmtree(scratch, ignore_errors=True)
    files, repository = scratch / "files", scratch / "git"
    files.mkdir(parents=True)
    try:
        for each in missing:
            (files / each.oid).write_bytes(each.text)
        local = local_environment() | _IDENTITY
        run_git(["init", "--quiet", "--bare", "--", str(repository)], local)
        at = ["--git-dir", str(repository), "--work-tree", str(files)]
        run_git([*at, "add", "--all"], local)
        run_git([*at, "commit", "--quiet", "--message=pointers"], local)
        url = mirror.repository.url
        settings = _SETTINGS | {
            "lfs.storage": str(path / "lfs"),
            "lfs.url": _server(mirror, clone),
            "remote.origin.url": url,
        }
        configured = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        try:
            run_git(
                ["--git-dir", str(repository), *configured, "lfs", "fetch", "origin", "HEAD"],
                mirror.access.environment(url),
                report=mirror.report,
                file_bytes=max(each.size for each in missing) + 2**20,
            )
        except GitFailed as error:
            return refusal(mirror.access, mirror.repository, error)
        return None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _server(mirror: Mirror, clone: Path) -> str:
    """The LFS server: what the commit's .lfsconfig says, if it is a web address, else what belongs to the URL."""
    url = mirror.repository.url
    if configured := _configured(clone):
        parts = urlsplit(configured)
        usual = parts.scheme == "https" or (parts.scheme == "http" and url.startswith("http://"))
        if not usual or not parts.hostname or has_credentials(configured) or not configured.isprintable():
            raise RepositoryNotAllowed(
                f"Repository {without_credentials(url)} names '{without_credentials(configured)}' as its LFS server in "
                ".lfsconfig; an https URL without credentials is taken."
            )
        return configured
    if not url.startswith(("http://", "https://")):
        return url
    return f"{url.rstrip('/').removesuffix('.git')}.git/info/lfs"


def _configured(clone: Path) -> str:
    blob = "HEAD:.lfsconfig"
    environment = local_environment()
    try:
        if int(run_git(["-C", str(clone), "cat-file", "-s", blob], environment)) > _CONFIG_BYTES:
            return ""
        return run_git(
            ["-C", str(clone), "config", "--no-includes", "--blob", blob, "--get", "lfs.url"], environment
        ).strip()
    except GitFailed:
        return ""


def _lay(store: Path, wanted: Iterable[Pointer], clone: Path) -> None:
    """Put the contents where git-lfs has them in a clone, and the filter that takes them from there."""
    for each in wanted:
        _link(store / each.place, clone / _OBJECTS / each.place)
    _filter(clone)


@contextmanager
def contents_below(clone: Path, submodules: Iterable[str]) -> Iterator[None]:
    """Have the clone's own git know the contents of its submodules, at these paths, too while the block runs.

    To it, what lies below a submodule are files of its own: a patch of all of them begins at their pointers.
    """
    laid: list[Path] = []
    filtered = (clone / _LFS).exists()
    given = False
    try:
        for store in (clone / path / _OBJECTS for path in submodules):
            for content in sorted(store.glob("??/??/*")):
                target = clone / _OBJECTS / content.relative_to(store)
                if _CONTENT.fullmatch(content.name) and not target.exists():
                    _link(content, target)
                    laid.append(target)
        if laid and not filtered:
            given = True
            _filter(clone)
        yield
    finally:
        for target in laid:
            target.unlink()
        if given:
            shutil.rmtree(clone / _LFS, ignore_errors=True)
            run_git(["-C", str(clone), "config", "--remove-section", "filter.lfs"], local_environment())


def _link(content: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(content)
    except OSError:
        shutil.copyfile(content, target)


def _filter(clone: Path) -> None:
    (clone / _LFS / _FILTER).write_bytes(workspace_program(_FILTER))
    command = f'sh "$(git rev-parse --git-common-dir)/lfs/{_FILTER}"'
    for name, value in {"clean": f"{command} clean", "smudge": f"{command} smudge", "required": "true"}.items():
        run_git(["-C", str(clone), "config", f"filter.lfs.{name}", value], local_environment())


def _unfilled(mirror: Mirror, reason: str, kind: type[RepositoryError] = RepositoryError) -> RepositoryError:
    url = without_credentials(mirror.repository.url)
    return kind(f"Contents of git LFS of repository {url} {reason}.", url=url)
