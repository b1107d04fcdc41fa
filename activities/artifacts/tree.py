"""The tree of files that was read from a workspace disk: what is in it, and no link in it is followed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from foundation.errors import InvalidParameter
from storage.names import as_text

_CHUNK = 2**20


def regular_files(tree: Path) -> dict[str, int]:
    """Size in bytes of every regular file of the tree by its relative path, symlinks not followed, sorted."""
    found: dict[str, int] = {}
    for directory, _, names in os.walk(tree):
        for name in names:
            path = Path(directory, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found[str(path.relative_to(tree))] = status.st_size
    return dict(sorted(found.items()))


@contextmanager
def set_aside(tree: Path, places: Mapping[str, Path]) -> Iterator[set[str]]:
    """Move directories of the tree to their places outside of it while the block runs; empty ones stand for them.

    Gives the paths of those that were there and not empty.
    """
    moved: dict[str, Path] = {}
    try:
        # The innermost first: what holds another one is moved without it.
        for path in sorted(places, key=len, reverse=True):
            source, target = tree / path, places[path]
            if is_directory(tree, path) and any(source.iterdir()):
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
                source.mkdir()
                moved[path] = target
        yield set(moved)
    finally:
        for path, target in reversed(moved.items()):
            (tree / path).rmdir()
            target.rename(tree / path)


def is_directory(tree: Path, path: str) -> bool:
    """True for a directory that no symbolic link leads to."""
    return not any(part.is_symlink() for part in _steps(tree, path)) and (tree / path).is_dir()


def may_be_made(tree: Path, path: str) -> bool:
    """True when nothing in the tree stands in the place of the path."""
    *above, last = _steps(tree, path)
    return not os.path.lexists(last) and not any(
        part.is_symlink() or (part.exists() and not part.is_dir()) for part in above
    )


def _steps(tree: Path, path: str) -> list[Path]:
    parts = path.split("/")
    return [tree.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]


def open_regular(root: Path, path: str) -> BinaryIO:
    """Open the regular file ``path`` below ``root`` for reading; no part of ``path`` may be a symbolic link.

    The tree comes from a guest, which may have set traps: a link out of it, a pipe that never answers, a device.
    Raises InvalidParameter for those, FileNotFoundError when nothing is there.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise InvalidParameter(f"'{as_text(path)}' is no path inside the workspace")
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = _open_beside(directory, part, path, os.O_DIRECTORY)
            os.close(directory)
            directory = below
        file = _open_beside(directory, parts[-1], path, os.O_NONBLOCK)
    finally:
        os.close(directory)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidParameter(f"'{as_text(path)}' is no regular file; only those are stored as artifacts")
    return os.fdopen(file, "rb")


def files_and_links(tree: Path) -> Iterator[str]:
    """Relative paths of all regular files and symbolic links."""
    for directory, below, names in os.walk(tree):
        for name in names + below:
            path = Path(directory, name)
            if path.is_symlink() or stat.S_ISREG(path.lstat().st_mode):
                yield str(path.relative_to(tree))


def same_content(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while chunk := first.read(_CHUNK):
            if chunk != second.read(_CHUNK):
                return False
    return True


def is_file(path: Path) -> bool:
    """True for a regular file, not for a link to one."""
    return not path.is_symlink() and path.is_file()


def blob_id(path: Path, algorithm: str) -> str:
    """The id that git gives the bytes of a file."""
    digest = hashlib.new(algorithm, b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _open_beside(directory: int, part: str, path: str, flags: int) -> int:
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InvalidParameter(
            f"'{as_text(path)}' cannot be stored: '{as_text(part)}' is a link, a special file or unreadable "
            f"({os.strerror(error.errno or 0)})"
        ) from None
