"""Artifacts of a run in the bucket: stored while they are read, redacted on the way, listed in one index."""

from __future__ import annotations

import io
import mimetypes
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from pydantic import BaseModel, TypeAdapter

from foundation.errors import ArtifactNotFound, NotFound
from storage.bucket import Bucket, ObjectStream
from storage.layout import Place
from storage.names import shown_path
from storage.redaction import Redactor

_BINARY = "application/octet-stream"
# Types by ending that the platform's own tables lack or name differently from host to host.
_TYPES = {
    ".patch": "text/x-diff",
    ".diff": "text/x-diff",
    ".md": "text/markdown",
    ".log": "text/plain",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".toml": "application/toml",
}


class StoredArtifact(BaseModel):
    """One artifact as the index has it.

    ``name`` is unique in the run, ``path`` relative to the workspace, as the file is called there; ``size_bytes`` and
    ``sha256`` (hex) are those of the stored content, which is not the file's own when ``redacted``. A ``hidden`` one is
    kept for a run that continues this one.
    """

    name: str
    path: str
    size_bytes: int
    content_type: str
    sha256: str
    created_at: datetime
    redacted: bool = False
    hidden: bool = False


_INDEX = TypeAdapter(list[StoredArtifact])


def store(
    bucket: Bucket,
    place: Place,
    name: str,
    content: bytes | BinaryIO,
    *,
    path: str | None = None,
    redactor: Redactor | None = None,
    content_type: str | None = None,
    hidden: bool = False,
) -> StoredArtifact:
    """Store one artifact under ``name``; once more under the same name replaces it. It is listed by ``write_index``.

    A file is read once, in parts of 8 MiB. Known secrets are replaced in content, name and path.
    The name of a workspace file is one that ``names.names_of`` made of its path. Raises BucketUnavailable, OSError.
    """
    redactor = redactor or Redactor({})
    name = redactor.redact_text(name)
    kind = content_type or guess_type(path or name)
    source = _Redacted(io.BytesIO(content) if isinstance(content, bytes) else content, redactor)
    stored = bucket.put_file(place.artifact_key(name), cast("BinaryIO", source), content_type=kind)
    return StoredArtifact(
        name=name,
        path=shown_path(path, redactor) if path is not None else name,
        size_bytes=stored.size,
        content_type=kind,
        sha256=stored.sha256,
        created_at=datetime.now(UTC),
        redacted=source.redacted,
        hidden=hidden,
    )


def write_index(bucket: Bucket, place: Place, artifacts: Sequence[StoredArtifact]) -> None:
    """Replace the run's list of artifacts. Write it last: what it lists can be downloaded."""
    bucket.put(place.artifact_index_key, _INDEX.dump_json(list(artifacts)), content_type="application/json")


def index(bucket: Bucket, place: Place) -> list[StoredArtifact]:
    """The run's artifacts; none while nothing was collected."""
    body = bucket.get(place.artifact_index_key)
    return _INDEX.validate_json(body) if body else []


def open_stream(bucket: Bucket, place: Place, name: str, offset: int = 0, length: int | None = None) -> ObjectStream:
    """Content of an artifact from byte ``offset`` on, at most ``length`` bytes, in chunks. Raises ArtifactNotFound."""
    try:
        return bucket.stream(place.artifact_key(name), offset, length)
    except NotFound:
        raise ArtifactNotFound(
            f"{place.noun.capitalize()} {place.id} has no artifact '{name}'; list its artifacts first"
        ) from None


def open_object(bucket: Bucket, key: str, name: str, offset: int = 0, length: int | None = None) -> ObjectStream:
    """Content of an artifact whose key a manifest gave. Raises ArtifactNotFound when the bucket has deleted it."""
    try:
        return bucket.stream(key, offset, length)
    except NotFound:
        raise expired(name) from None


def expired(name: str, **details: Any) -> ArtifactNotFound:
    """The error of an artifact that is named, and whose content the bucket has deleted."""
    return ArtifactNotFound(f"The content of the artifact '{name}' has expired", **details)


def guess_type(name: str) -> str:
    """Content type by the name's ending; bytes when it says nothing."""
    ending = PurePosixPath(name).suffix.lower()
    # The ending alone: a name such as "data:…" would be taken for a URL.
    return _TYPES.get(ending) or mimetypes.guess_type(f"file{ending}", strict=False)[0] or _BINARY


class _Redacted:
    """A file whose known secrets are replaced while it is read. ``redacted`` says whether one was met."""

    def __init__(self, file: BinaryIO, redactor: Redactor) -> None:
        self.redacted = False
        self._file = file
        self._stream = redactor.stream()
        self._ready = bytearray()
        self._ended = False

    def read(self, count: int = -1) -> bytes:
        wanted = count if count >= 0 else 2**62
        while len(self._ready) < wanted and not self._ended:
            data = self._file.read(min(wanted, 2**20))
            self._ended = not data
            for piece in self._stream.feed(data) if data else self._stream.finish():
                self._ready += piece.data
                self.redacted |= piece.replaced
        content = bytes(self._ready[:wanted])
        del self._ready[:wanted]
        return content
