"""What clients upload, on a real S3 server: one manifest that loses nothing, forms and URLs that do one thing each."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from api.runs.uploads import UPLOAD_BYTES, Description, Finished, Prepared, Upload, Uploads, all_artifacts
from foundation.errors import ArtifactNotFound, Conflict, InvalidBody
from foundation.settings import Settings
from storage import artifacts
from storage.bucket import Bucket
from storage.layout import STAGED, TASKS, Place
from storage.uploads import manifest
from storage.uploads.manifest import UploadedArtifact
from storage.uploads.presigned import Presigner
from tests.servers import S3Server
from worker.retention import expire

PLAN = Description("plan.md", "plan", "agent_output")


@pytest.fixture
def place(bucket: Bucket) -> Iterator[Place]:
    made = TASKS.place(str(uuid.uuid4()))
    yield made
    for prefix in (made.prefix, f"incoming/{made.prefix}", STAGED.place(made.id).prefix):
        bucket.delete([found.key for found in bucket.list(prefix)])


@pytest.fixture
def uploads(services: Settings, bucket: Bucket) -> Uploads:
    return Uploads(bucket, Presigner(services))


def entry(number: int) -> UploadedArtifact:
    return UploadedArtifact(
        id=f"{number:032x}",
        name=f"{number}.txt",
        kind="output",
        key=f"k/{number}",
        size_bytes=number,
        content_type="text/plain",
        sha256="0" * 64,
        created_at=datetime.now(UTC),
    )


def send(prepared: Prepared, content: bytes, **fields: str) -> int:
    files = {"file": (prepared.description.name, content)}
    return httpx.post(prepared.form.url, data={**prepared.form.fields, **fields}, files=files).status_code


def test_of_many_additions_at_once_none_is_lost(bucket: Bucket, place: Place) -> None:
    with ThreadPoolExecutor(8) as pool:
        wholes = list(pool.map(lambda number: manifest.add(bucket, place, [entry(number)]), range(1, 41)))
    found = manifest.uploaded(bucket, place)
    assert sorted(each.id for each in found) == [entry(number).id for number in range(1, 41)]
    assert [whole[-1].id for whole in wholes] == [entry(number).id for number in range(1, 41)]
    # Told of again: the last one is there already, an earlier one moves to the end.
    count = len(list(bucket.list(place.manifest_prefix)))
    assert manifest.add(bucket, place, [found[-1]]) == found
    assert len(list(bucket.list(place.manifest_prefix))) == count
    assert manifest.add(bucket, place, [found[0]]) == [*found[1:], found[0]] == manifest.uploaded(bucket, place)


def test_a_manifest_has_an_end(bucket: Bucket, place: Place) -> None:
    most = [entry(number) for number in range(manifest.UPLOADED_MOST)]
    assert len(manifest.add(bucket, place, most)) == manifest.UPLOADED_MOST
    with pytest.raises(Conflict, match="can have 1000"):
        manifest.add(bucket, place, [entry(manifest.UPLOADED_MOST)])
    assert len(manifest.uploaded(bucket, place)) == manifest.UPLOADED_MOST


async def test_what_is_sent_stands_last_behind_what_was_collected(
    bucket: Bucket, place: Place, uploads: Uploads
) -> None:
    def collect() -> None:
        artifacts.write_index(bucket, place, [artifacts.store(bucket, place, "out/report.md", b"# Report\n")])

    await asyncio.to_thread(collect)
    same = Upload(PLAN, b"first")
    first = await uploads.store(place.id, [Upload(replace(PLAN, name="../deep/plan.md"), b"first"), same])
    assert [each.name for each in first] == ["out/report.md", "plan.md", "plan.md"]
    # The collection writes its own list once more, as a repeated attempt does.
    await asyncio.to_thread(collect)
    second = await uploads.store(place.id, [Upload(PLAN, b"second")])
    assert [each.id for each in second[:3]] == [each.id for each in first]
    assert len(second) == 4
    # The answer was lost.
    assert await uploads.store(place.id, [Upload(PLAN, b"second")]) == second
    assert await uploads.manifest(place.id) == second
    listed = await asyncio.to_thread(all_artifacts, bucket, place)
    assert len({each.name for each in listed}) == 4
    for each in second:
        opened = await uploads.open(each)
        content = await asyncio.to_thread(b"".join, opened)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (each.size_bytes, each.sha256)
        answer = await asyncio.to_thread(httpx.get, await uploads.presign(place.id, each.key))
        assert (answer.content, answer.headers["content-type"]) == (content, each.content_type)
        assert answer.headers["content-disposition"].startswith("attachment")
    for key in ("", f"{place.prefix}record.json", f"{second[0].key}/../x", TASKS.place("other").artifact_key("a")):
        with pytest.raises(ArtifactNotFound):
            await uploads.presign(place.id, key)


async def test_a_form_takes_one_object_of_one_type_and_size(bucket: Bucket, place: Place, uploads: Uploads) -> None:
    size = 1000
    (prepared,) = uploads.prepare(place, [(PLAN, size)])
    assert send(prepared, b"x" * (size + 65 * 1024)) == 400
    assert send(prepared, b"x", key=place.record_key) == 403
    assert send(prepared, b"x", **{"Content-Type": "text/html"}) == 403
    finished = Finished(prepared.id, prepared.key, PLAN)
    with pytest.raises(InvalidBody, match="has not been uploaded"):
        await uploads.finalize(place, [finished])
    assert send(prepared, b"x" * size) == 204
    (made,) = await uploads.finalize(place, [finished])
    assert (made.key, made.size_bytes, made.content_type) == (prepared.key, size, "text/markdown")
    # Whoever still has the form changes nothing of what was told of, nor does telling of it again.
    assert send(prepared, b"other") == 204
    assert await uploads.finalize(place, [finished, finished]) == [made, made]
    assert await uploads.manifest(place.id) == [made]
    assert await asyncio.to_thread(bucket.get, made.key) == b"x" * size


@pytest.mark.parametrize(
    "change",
    [{"id": "0" * 32}, {"id": "../x"}, {"key": "tasks/a/record.json"}, {"description": replace(PLAN, name="b.md")}],
)
async def test_only_what_was_prepared_here_is_finalized(place: Place, uploads: Uploads, change: dict[str, str]) -> None:
    (prepared,) = uploads.prepare(place, [(PLAN, 1)])
    assert send(prepared, b"x") == 204
    finished = Finished(prepared.id, prepared.key, PLAN)
    with pytest.raises(InvalidBody):
        await uploads.finalize(place, [replace(finished, **change)])
    with pytest.raises(InvalidBody):
        await uploads.finalize(TASKS.place("another"), [finished])
    assert await uploads.manifest(place.id) == []


async def test_what_was_staged_for_a_task_goes_to_its_run(place: Place, uploads: Uploads) -> None:
    staged = STAGED.place(place.id)
    (prepared,) = uploads.prepare(staged, [(replace(PLAN, kind="user_attachment"), 4)])
    assert send(prepared, b"what") == 204
    (made,) = await uploads.finalize(staged, [Finished(prepared.id, prepared.key, prepared.description)])
    with pytest.raises(ArtifactNotFound) as refused:
        await uploads.adopt(place.id, place.id, [made.id, "nothing"])
    assert refused.value.details["missing"] == ["nothing"]
    assert await uploads.manifest(place.id) == []
    for _ in range(2):
        (own,) = await uploads.adopt(place.id, place.id, [made.id, made.id])
        assert (own.id, own.kind, own.sha256) == (made.id, "user_attachment", made.sha256)
        assert own.key.startswith(place.prefix)
        assert await uploads.manifest(place.id) == [own]


HOSTILE = [
    (Description("a\ud800", "plan"), "name"),
    (Description("a\0", "plan"), "name"),
    (Description("a" * 256, "plan"), "name"),
    (Description("a", "Plan!"), "type"),
    (Description("a", "plan", "s" * 65), "source"),
    (Description("a", "plan", "\ud800"), "source"),
    (Description("a", "plan", "", "text/html\r\nx: y"), "content_type"),
]


@pytest.mark.parametrize(("description", "field"), HOSTILE)
async def test_what_is_no_description_is_refused_by_its_field(
    place: Place, uploads: Uploads, description: Description, field: str
) -> None:
    with pytest.raises(InvalidBody) as refused:
        await uploads.store(place.id, [Upload(PLAN, b""), Upload(description, b"")])
    assert refused.value.details["errors"][0]["field"] == f"artifacts[1].{field}"
    with pytest.raises(InvalidBody):
        uploads.prepare(place, [(description, 1)])
    with pytest.raises(InvalidBody, match="at most 30"):
        uploads.prepare(place, [(PLAN, UPLOAD_BYTES + 1)])
    assert await uploads.manifest(place.id) == []


@pytest.mark.parametrize("name", ["", "/", ".", "a/..", " "])
async def test_what_names_no_file_is_an_artifact(place: Place, uploads: Uploads, name: str) -> None:
    (made,) = await uploads.store(place.id, [Upload(Description(name, "artifact"), b"x")])
    assert made.name == "artifact"


def test_urls_name_the_address_that_clients_have(services: Settings, place: Place) -> None:
    """What stands before the bucket may have any name, as long as it hands on the one that was asked for."""
    public = services.model_copy(update={"s3_public_url": "http://bucket.example.org"})
    own = f"http://{services.s3_target}"
    url = Presigner(public).url(place.record_key, name="x", content_type="text/plain")
    form = Presigner(public).form(place.record_key, content_type="text/plain", most_bytes=1)
    for each in (url, form.url):
        assert each.startswith("http://bucket.example.org/taskyard/")
    asked = url.replace("http://bucket.example.org", own)
    assert httpx.get(asked).status_code == 403
    assert httpx.get(asked, headers={"Host": "bucket.example.org"}).status_code == 404


async def test_what_the_bucket_has_deleted_is_not_listed_and_no_url_is_signed_for_it(
    uploads: Uploads, bucket: Bucket, place: Place
) -> None:
    """The manifest may be younger than what it names: every so often an addition repeats all that was before it."""
    sent = [Upload(replace(PLAN, name=name), name.encode()) for name in ("gone.md", "kept.md", "new.md")]
    *old, new = await uploads.store(place.id, sent)
    aged = [each.model_copy(update={"created_at": each.created_at - timedelta(days=31)}) for each in old]
    collected = await asyncio.to_thread(artifacts.store, bucket, place, "a.patch", b"x")
    collected = collected.model_copy(update={"created_at": aged[0].created_at})
    await asyncio.to_thread(artifacts.write_index, bucket, place, [collected])
    whole = manifest._Addition(artifacts=[*aged, new], whole=True).model_dump_json().encode()
    await asyncio.to_thread(bucket.put, place.manifest_key(1), whole)
    names = [each.name for each in await uploads.manifest(place.id)]
    assert names == ["a.patch", "gone.md", "kept.md", "new.md"]
    await asyncio.to_thread(bucket.delete, [place.artifact_key("a.patch"), aged[0].key])
    assert [each.name for each in await uploads.manifest(place.id)] == ["kept.md", "new.md"]
    assert len(await asyncio.to_thread(all_artifacts, bucket, place)) == 2
    # One that was deleted before its time is found out when it is asked for.
    await asyncio.to_thread(bucket.delete, [new.key])
    for key in (aged[0].key, new.key):
        with pytest.raises(ArtifactNotFound):
            await uploads.presign(place.id, key)
    assert "X-Amz-Signature" in await uploads.presign(place.id, aged[1].key)


async def test_the_embedded_server_deletes_what_a_rule_says_is_old(tmp_path: Path) -> None:
    """By a rule with a date, as nothing here is thirty days old."""

    def begin(server: S3Server) -> Bucket:
        bucket = Bucket(server.settings)
        for key in ("old/a", "young/a"):
            bucket.put(key, b"x")
        rule = Rule(
            status=ENABLED,
            rule_filter=Filter(prefix="old/"),
            rule_id="old",
            expiration=Expiration(date=datetime(2020, 1, 1, tzinfo=UTC)),
        )
        bucket._client.set_bucket_lifecycle(bucket_name=bucket.name, config=LifecycleConfig([rule]))
        return bucket

    with S3Server(tmp_path) as server:
        bucket = await asyncio.to_thread(begin, server)
        await expire(server.settings)
        assert await asyncio.to_thread(bucket.get, "old/a") is None
        assert await asyncio.to_thread(bucket.get, "young/a") == b"x"


def test_the_bucket_keeps_its_operators_rules_beside_ours(services: Settings, bucket: Bucket) -> None:
    client = bucket._client

    def rules() -> dict[str | None, int | None]:
        config = client.get_bucket_lifecycle(bucket_name=bucket.name)
        assert config is not None
        return {rule.rule_id: rule.expiration.days if rule.expiration else None for rule in config.rules}

    ours = {"abort-abandoned-uploads": None, "taskyard-incoming": 1, "taskyard-tasks": 30, "taskyard-staged": 30}
    assert rules() == ours
    theirs = Rule(status=ENABLED, rule_filter=Filter(prefix="other/"), rule_id="theirs", expiration=Expiration(days=7))
    client.set_bucket_lifecycle(bucket_name=bucket.name, config=LifecycleConfig([theirs]))
    bucket.ensure()
    assert rules() == {"theirs": 7} | ours
    Bucket(services.model_copy(update={"retention_days": 90})).ensure()
    assert rules() == {"theirs": 7} | ours | {"taskyard-tasks": 90, "taskyard-staged": 90}
    Bucket(services.model_copy(update={"retention_days": 0})).ensure()
    assert rules() == {"theirs": 7, "abort-abandoned-uploads": None, "taskyard-incoming": 1}
    client.delete_bucket_lifecycle(bucket_name=bucket.name)
    bucket.ensure()
    assert rules() == ours
