"""Pointers of git LFS: the small texts that a commit holds in place of large contents, and the contents they name."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

# What is larger is no pointer, whatever it looks like.
POINTER_BYTES = 1024

_CHUNK = 2**20
_POINTER = re.compile(
    rb"version https://(?:git-lfs\.github\.com/spec/v1|hawser\.github\.com/spec/v1)\n"
    rb"oid sha256:([0-9a-f]{64})\nsize (0|[1-9][0-9]{0,17})\n?"
)


@dataclass(frozen=True)
class Pointer:
    """The SHA-256 of a content in hex, and its size in bytes."""

    oid: str
    size: int

    @property
    def place(self) -> str:
        """Where the content lies below a directory of LFS contents."""
        return f"{self.oid[:2]}/{self.oid[2:4]}/{self.oid}"

    @property
    def text(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n".encode()

    def is_of(self, path: Path) -> bool:
        """Whether the file has the content."""
        if path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest() == self.oid


def pointer(content: bytes) -> Pointer | None:
    """The pointer that the content is. One whose content was changed by an extension of LFS counts as none."""
    match = _POINTER.fullmatch(content)
    return Pointer(match[1].decode(), int(match[2])) if match else None
