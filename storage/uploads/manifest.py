"""The manifest of what clients have uploaded for one run: additions that many servers make at once, none lost.

Each addition is an object that is put under the next free number, so that two of one moment cannot both have it: the
one that comes second reads what the first has added, and takes the number after it. Nothing is rewritten. Every so
often an addition repeats all that was before it, so that readers need few requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from pydantic import BaseModel

from foundation.errors import BucketUnavailable, Conflict
from storage.bucket import ObjectStore
from storage.layout import Place

#: How many uploaded artifacts a run can have.
UPLOADED_MOST = 1000

_WHOLE_EVERY = 16
_TRIES = 200


class UploadedArtifact(BaseModel):
    """One uploaded artifact. Its content lies at ``key`` and never changes.

    ``kind`` and ``source`` are the client's own words for what it is and where it is from; ``sha256`` in hex.
    """

    id: str
    name: str
    kind: str
    source: str = ""
    key: str
    size_bytes: int
    content_type: str
    sha256: str
    created_at: datetime


class _Addition(BaseModel):
    """What one request added; ``whole``: with all that was there before."""

    artifacts: list[UploadedArtifact]
    whole: bool = False


def uploaded(bucket: ObjectStore, place: Place) -> list[UploadedArtifact]:
    """What clients have uploaded, in the order in which it was told of, each once. Raises BucketUnavailable."""
    return _read(bucket, place)[1]


def add(bucket: ObjectStore, place: Place, artifacts: Sequence[UploadedArtifact]) -> list[UploadedArtifact]:
    """Add artifacts behind all others, and give the whole manifest, which ends with them.

    One that is there already is not there twice: it moves to the end, and stays as it was. Adding once more what was
    added last changes nothing. Raises Conflict when the run has too many, BucketUnavailable.
    """
    for _ in range(_TRIES):
        last, before = _read(bucket, place)
        there = {artifact.id: artifact for artifact in before}
        own = [there.get(artifact.id, artifact) for artifact in artifacts]
        merged = _merged([*before, *own])
        if merged == before:
            return before
        if len(merged) > UPLOADED_MOST:
            raise Conflict(f"{place} has {len(before)} uploaded artifacts, and can have {UPLOADED_MOST}.".capitalize())
        whole = (last + 1) % _WHOLE_EVERY == 0
        addition = _Addition(artifacts=merged if whole else own, whole=whole)
        body = addition.model_dump_json().encode()
        if bucket.put(place.manifest_key(last + 1), body, if_absent=True, content_type="application/json"):
            return merged
    raise BucketUnavailable(f"The artifacts of {place} are being added to by too many at once; try again.")


def _read(bucket: ObjectStore, place: Place) -> tuple[int, list[UploadedArtifact]]:
    """The number of the last addition, 0 for none, and what all of them come to."""
    keys = [found.key for found in bucket.list(place.manifest_prefix)]
    parts: list[list[UploadedArtifact]] = []
    for key in reversed(keys):
        body = bucket.get(key)
        if body is None:
            # The bucket's own rule has deleted it, with its content: it was the oldest.
            break
        addition = _Addition.model_validate_json(body)
        parts.append(addition.artifacts)
        if addition.whole:
            break
    number = int(keys[-1].rpartition("/")[2]) if keys else 0
    return number, _merged(artifact for part in reversed(parts) for artifact in part)


def _merged(artifacts: Iterable[UploadedArtifact]) -> list[UploadedArtifact]:
    """Each artifact once, where it was named last."""
    found: dict[str, UploadedArtifact] = {}
    for artifact in artifacts:
        found.pop(artifact.id, None)
        found[artifact.id] = artifact
    return list(found.values())
