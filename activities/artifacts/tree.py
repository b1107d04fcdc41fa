"""The tree of files that was read from a workspace disk: what is in it, and no link in it is followed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

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
            if _is_directory(tree, path) and any(source.iterdir()):
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
                source.mkdir()
                moved[path] = target
        yield set(moved)
    finally:
        for path, target in reversed(moved.items()):
            (tree / path).rmdir()
            target.rename(tree / path)


def _is_directory(tree: Path, path: str) -> bool:
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
