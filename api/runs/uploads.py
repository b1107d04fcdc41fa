"""Artifacts that clients upload for a run, or stage for one to come, beside those that its host collects."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from anyio import CapacityLimiter, to_thread

from foundation.errors import ArtifactNotFound, InvalidBody
from foundation.faults import Fault
from foundation.units import format_size
from storage import artifacts
from storage.bucket import Bucket, ObjectStream
from storage.layout import STAGED, TASKS, Place
from storage.names import is_uploaded_name, uploaded_name
from storage.uploads import manifest
from storage.uploads.expiry import still_there
from storage.uploads.manifest import UploadedArtifact
from storage.uploads.presigned import Form, Presigner
from workflows.runs.requests import Artifact

#: What one uploaded artifact may hold.
UPLOAD_BYTES = 30 * 2**20
#: What a form takes beyond the size that was said: the size of a file is often known only roughly.
SPARE_BYTES = 64 * 1024
#: How many artifacts one request may bring.
UPLOADS_MOST = 100

NAME_CHARS = 255
KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")
SOURCE_CHARS = 64
COLLECTED_KIND = "output"
COLLECTED_SOURCE = "collected"
UNNAMED = "artifact"

_ID = re.compile(r"[0-9a-f]{32}")
_TYPE = re.compile(r"[\x20-\x7e]{0,255}")
# Each of them may hold an artifact in memory.
_AT_ONCE = 4


@dataclass(frozen=True)
class Description:
    """What a client says of an artifact. The last part of ``name`` counts; ``kind`` is a word of small letters."""

    name: str
    kind: str
    source: str = ""
    content_type: str = ""


@dataclass(frozen=True)
class Upload:
    """An artifact with its content."""

    description: Description
    content: bytes


@dataclass(frozen=True)
class Prepared:
    """An artifact that the client is to upload by the form. It will lie at ``key`` when that is told of."""

    id: str
    key: str
    description: Description
    form: Form


@dataclass(frozen=True)
class Finished:
    """An artifact that was uploaded by the form that belongs to ``id`` and ``key``."""

    id: str
    key: str
    description: Description


class Uploads:
    """What clients add to the artifacts of runs. Whether there is such a run is for its callers to say.

    Every method but ``prepare`` may raise BucketUnavailable.
    """

    def __init__(self, bucket: Bucket, presigner: Presigner) -> None:
        self._bucket = bucket
        self._presigner = presigner
        self._limiter = CapacityLimiter(_AT_ONCE)

    async def manifest(self, run_id: str) -> list[UploadedArtifact]:
        """All artifacts of a run that have not expired: what was collected, then what was uploaded, in its order."""
        return await asyncio.to_thread(self._manifest, TASKS.place(run_id))

    async def staged(self, parent_id: str) -> list[UploadedArtifact]:
        """What was uploaded for runs of a parent task to come."""
        return await asyncio.to_thread(_uploaded, self._bucket, STAGED.place(parent_id))

    async def store(self, run_id: str, uploads: Sequence[Upload]) -> list[UploadedArtifact]:
        """Add artifacts to a run, and give its whole manifest, which ends with them.

        The same artifacts again, with the same content, are the same: a client may repeat what it got no answer to.
        Raises InvalidBody, Conflict when the run has too many.
        """
        checked = [_checked(upload.description, number) for number, upload in enumerate(uploads)]
        for number, upload in enumerate(uploads):
            _check_size(len(upload.content), number)
        contents = [upload.content for upload in uploads]
        return await to_thread.run_sync(self._store, TASKS.place(run_id), checked, contents, limiter=self._limiter)

    def prepare(self, place: Place, wanted: Sequence[tuple[Description, int]]) -> list[Prepared]:
        """A form for each artifact, by which the client uploads it; with each goes the size that it says in bytes.

        ``place`` is that of a run, or of what is staged for a parent task. Raises InvalidBody.
        """
        prepared = []
        for number, (said, size) in enumerate(wanted):
            description = _checked(said, number)
            _check_size(size, number)
            artifact_id = secrets.token_hex(16)
            form = self._presigner.form(
                place.incoming_key(artifact_id), content_type=description.content_type, most_bytes=size + SPARE_BYTES
            )
            key = place.uploaded_key(artifact_id, description.name)
            prepared.append(Prepared(artifact_id, key, description, form))
        return prepared

    async def finalize(self, place: Place, finished: Sequence[Finished]) -> list[UploadedArtifact]:
        """Add what was uploaded by forms to the manifest; the artifacts told of, in their order, and no others.

        From then on its content stays as it is, whoever has the form. What was told of before is only given again.
        Raises InvalidBody for one that the forms of this place did not make or that nobody has uploaded.
        """
        checked = [_checked(each.description, number) for number, each in enumerate(finished)]
        for number, (each, description) in enumerate(zip(finished, checked, strict=True)):
            if not _ID.fullmatch(each.id) or each.key != place.uploaded_key(each.id, description.name):
                raise _fault(number, "storage_path", f"is none that was prepared for {place} with this id and name")
        return await to_thread.run_sync(self._finalize, place, finished, checked, limiter=self._limiter)

    async def adopt(self, parent_id: str, run_id: str, artifact_ids: Sequence[str]) -> list[UploadedArtifact]:
        """Give a run artifacts that were staged for it, by their ids; what it has of them now. Raises ArtifactNotFound.

        ``details["missing"]`` of that error lists the ids that were never staged; nothing has changed then.
        """
        return await to_thread.run_sync(self._adopt, parent_id, run_id, artifact_ids, limiter=self._limiter)

    async def find(self, run_ids: Sequence[str], key: str) -> UploadedArtifact:
        """The artifact at a key, when it is in the manifest of one of these runs. Raises ArtifactNotFound."""
        for run_id in run_ids:
            for artifact in await self.manifest(run_id):
                if artifact.key == key:
                    return artifact
        raise ArtifactNotFound(f"Artifact not found on this run: nothing of its manifest lies at '{key[:200]}'.")

    async def presign(self, run_id: str, key: str) -> str:
        """A URL of the bucket that reads one artifact of the run's manifest. Raises ArtifactNotFound.

        Whoever gets the URL hears nothing of ours any more: that there is something at it is looked up.
        """
        artifact = await self.find([run_id], key)
        if await asyncio.to_thread(self._bucket.stat, artifact.key) is None:
            raise artifacts.expired(artifact.name)
        name = artifact.name.rpartition("/")[2]
        return self._presigner.url(artifact.key, name=name, content_type=artifact.content_type)

    async def open(self, artifact: UploadedArtifact) -> ObjectStream:
        """The content of an artifact of a manifest; its reading blocks. Raises ArtifactNotFound when it has expired."""
        return await asyncio.to_thread(artifacts.open_object, self._bucket, artifact.key, artifact.name)

    # --- how

    def _manifest(self, place: Place) -> list[UploadedArtifact]:
        collected = [
            UploadedArtifact(
                id=_digest("collected", each.name),
                name=each.name,
                kind=COLLECTED_KIND,
                source=COLLECTED_SOURCE,
                key=place.artifact_key(each.name),
                size_bytes=each.size_bytes,
                content_type=each.content_type,
                sha256=each.sha256,
                created_at=each.created_at,
            )
            for each in artifacts.index(self._bucket, place)
        ]
        return _present(self._bucket, place, [*collected, *manifest.uploaded(self._bucket, place)])

    def _store(
        self, place: Place, descriptions: Sequence[Description], contents: Sequence[bytes]
    ) -> list[UploadedArtifact]:
        made = []
        same: Counter[str] = Counter()
        for description, content in zip(descriptions, contents, strict=True):
            sha256 = hashlib.sha256(content).hexdigest()
            facts = (description.name, description.kind, description.source, description.content_type, sha256)
            # Two of one request that are the same are two.
            artifact_id = _digest("uploaded", *facts, str(same[_digest(*facts)]))
            same[_digest(*facts)] += 1
            made.append(self._put(place, artifact_id, description, content))
        manifest.add(self._bucket, place, made)
        own = {artifact.id: None for artifact in made}
        whole = self._manifest(place)
        # Another client may have added more in between: its own stand last in what a client gets.
        return [*(each for each in whole if each.id not in own), *(each for each in whole if each.id in own)]

    def _finalize(
        self, place: Place, finished: Sequence[Finished], descriptions: Sequence[Description]
    ) -> list[UploadedArtifact]:
        there = {artifact.id: artifact for artifact in manifest.uploaded(self._bucket, place)}
        made = {}
        for number, (each, description) in enumerate(zip(finished, descriptions, strict=True)):
            if each.id in there or each.id in made:
                continue
            content = self._bucket.get(place.incoming_key(each.id))
            if content is None:
                # An answer that was lost may have left the content at its end, but not told of it.
                content = self._bucket.get(each.key)
            if content is None:
                raise _fault(number, "storage_path", "has not been uploaded; send the file by its form first")
            _check_size(len(content), number, spare=SPARE_BYTES)
            made[each.id] = self._put(place, each.id, description, content)
        if made:
            manifest.add(self._bucket, place, list(made.values()))
            self._bucket.delete(place.incoming_key(artifact_id) for artifact_id in made)
        known = there | made
        return [known[each.id] for each in finished]

    def _adopt(self, parent_id: str, run_id: str, artifact_ids: Sequence[str]) -> list[UploadedArtifact]:
        place = TASKS.place(run_id)
        there = {artifact.id: artifact for artifact in manifest.uploaded(self._bucket, place)}
        staged = {artifact.id: artifact for artifact in _uploaded(self._bucket, STAGED.place(parent_id))}
        wanted = list(dict.fromkeys(artifact_ids))
        if missing := [each for each in wanted if each not in there and each not in staged]:
            raise ArtifactNotFound("Some of the artifacts were not uploaded for this task.", missing=missing)
        new = []
        for artifact in (staged[each] for each in wanted if each not in there):
            content = self._bucket.get(artifact.key)
            if content is None:
                raise artifacts.expired(artifact.name, missing=[artifact.id])
            said = Description(artifact.name, artifact.kind, artifact.source, artifact.content_type)
            new.append(self._put(place, artifact.id, said, content))
        if new:
            manifest.add(self._bucket, place, new)
        known = there | {artifact.id: artifact for artifact in new}
        return [known[each] for each in wanted]

    def _put(self, place: Place, artifact_id: str, description: Description, content: bytes) -> UploadedArtifact:
        """Store content under its key, or find it there: what lies there was first, and stays."""
        key = place.uploaded_key(artifact_id, description.name)
        if not self._bucket.put(key, content, if_absent=True, content_type=description.content_type):
            content = self._bucket.get(key) or content
            # It is to last as long as what names it from now on.
            self._bucket.put(key, content, content_type=description.content_type)
        return UploadedArtifact(
            id=artifact_id,
            name=description.name,
            kind=description.kind,
            source=description.source,
            key=key,
            size_bytes=len(content),
            content_type=description.content_type,
            sha256=hashlib.sha256(content).hexdigest(),
            created_at=datetime.now(UTC),
        )


def all_artifacts(bucket: Bucket, place: Place) -> list[Artifact]:
    """What was collected of a run and what clients have uploaded for it, each under a name that no other has.

    What has expired is left out.
    """
    found = artifacts.index(bucket, place)
    collected = still_there(
        bucket, place, found, key=lambda each: place.artifact_key(each.name), created_at=lambda each: each.created_at
    )
    return [
        *(Artifact.model_validate(each.model_dump()) for each in collected),
        *(_as_artifact(each) for each in _uploaded(bucket, place)),
    ]


def open_artifact(bucket: Bucket, place: Place, name: str, offset: int, length: int) -> ObjectStream:
    """An artifact by that name, from byte ``offset`` on; its reading blocks. Raises ArtifactNotFound."""
    if is_uploaded_name(name):
        for each in manifest.uploaded(bucket, place):
            if _as_artifact(each).name == name:
                return artifacts.open_object(bucket, each.key, name, offset, length)
    return artifacts.open_stream(bucket, place, name, offset, length)


def _uploaded(bucket: Bucket, place: Place) -> list[UploadedArtifact]:
    return _present(bucket, place, manifest.uploaded(bucket, place))


def _present(bucket: Bucket, place: Place, found: Sequence[UploadedArtifact]) -> list[UploadedArtifact]:
    return still_there(bucket, place, found, key=lambda each: each.key, created_at=lambda each: each.created_at)


def _as_artifact(uploaded: UploadedArtifact) -> Artifact:
    name = uploaded_name(uploaded.id, uploaded.name)
    return Artifact(
        name=name,
        path=name,
        size_bytes=uploaded.size_bytes,
        content_type=uploaded.content_type,
        sha256=uploaded.sha256,
        created_at=uploaded.created_at,
    )


def _checked(said: Description, number: int) -> Description:
    """The description as it is kept. Raises InvalidBody."""
    for field, text in (("name", said.name), ("source", said.source)):
        if not _is_text(text):
            raise _fault(number, field, "holds half of a character (a lone surrogate) or a NUL")
    name = said.name.rpartition("/")[2].strip()
    if name in {"", ".", ".."}:
        name = UNNAMED
    if len(name) > NAME_CHARS:
        raise _fault(number, "name", f"has more than {NAME_CHARS} characters")
    if len(said.source) > SOURCE_CHARS:
        raise _fault(number, "source", f"has more than {SOURCE_CHARS} characters")
    if not KIND.fullmatch(said.kind):
        raise _fault(number, "type", "is a word of small letters, digits and '_'")
    if not _TYPE.fullmatch(said.content_type):
        raise _fault(number, "content_type", "is a media type such as text/markdown")
    content_type = said.content_type.strip() or artifacts.guess_type(name)
    return Description(name, said.kind, said.source, content_type)


def _check_size(size: int, number: int, *, spare: int = 0) -> None:
    if size > UPLOAD_BYTES + spare:
        raise _fault(number, "size", f"is {format_size(size)}; an artifact holds at most {format_size(UPLOAD_BYTES)}")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _digest(*parts: str) -> str:
    """An id made of these parts, each of which ends where it does."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _fault(number: int, field: str, message: str) -> InvalidBody:
    return InvalidBody.of([Fault(f"artifacts[{number}].{field}", message, "invalid_input")])
