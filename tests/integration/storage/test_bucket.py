"""The bucket on a real S3 server: conditional writes, ranges, large files, and a sentence for every failure."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from activities.artifacts.tree import open_regular
from foundation.errors import ArtifactNotFound, BucketUnavailable, HostNotReady, NotFound
from foundation.settings import Settings
from storage import artifacts, records
from storage.bucket import Bucket, ObjectStream
from storage.layout import TASKS
from storage.names import names_of
from storage.redaction import Redactor
from tests.servers import S3Server
from tests.stack_settings import free_ports

MIB = 2**20


@pytest.fixture
def task_id(bucket: Bucket) -> Iterator[str]:
    made = f"test-{uuid.uuid4().hex[:12]}"
    yield made
    bucket.delete([found.key for found in bucket.list(TASKS.place(made).prefix)])


def test_objects_are_stored_listed_in_order_read_in_ranges_and_deleted(bucket, task_id):
    prefix = TASKS.place(task_id).prefix
    for number in (3, 1, 2, 11):
        bucket.put(f"{prefix}{number:04d}", b"0123456789" * number, content_type="text/plain")
    assert [item.key[-4:] for item in bucket.list(prefix)] == ["0001", "0002", "0003", "0011"]
    assert [item.size for item in bucket.list(prefix, start_after=f"{prefix}0002")] == [30, 110]
    assert bucket.get(f"{prefix}0002") == b"0123456789" * 2
    assert b"".join(bucket.stream(f"{prefix}0001", 4)) == b"456789"
    assert b"".join(bucket.stream(f"{prefix}0001", 4, 3)) == b"456"
    assert b"".join(bucket.stream(f"{prefix}0001", 10)) == b""
    assert bucket.stat(f"{prefix}0003").content_type == "text/plain"
    bucket.delete([found.key for found in bucket.list(prefix)])
    bucket.delete([f"{prefix}0001"])
    assert list(bucket.list(prefix)) == []
    assert (bucket.get(f"{prefix}0001"), bucket.stat(f"{prefix}0001")) == (None, None)
    with pytest.raises(NotFound):
        bucket.stream(f"{prefix}0001")


def test_of_writers_that_race_for_a_key_exactly_one_wins(bucket, task_id):
    with ThreadPoolExecutor(4) as pool:
        for number in range(6):
            key = f"{TASKS.place(task_id).prefix}{number}"
            bodies = [bytes([writer]) * (10 if number % 2 else 9000) for writer in range(4)]
            won = list(pool.map(lambda body, key=key: bucket.put(key, body, if_absent=True), bodies))
            assert won.count(True) == 1
            assert bucket.get(key) == bodies[won.index(True)]


def test_listings_longer_than_a_page_are_whole(bucket, task_id):
    prefix = TASKS.place(task_id).prefix
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: bucket.put(f"{prefix}{number:05d}", b"x"), range(1100)))
    assert [item.key for item in bucket.list(prefix)] == [f"{prefix}{number:05d}" for number in range(1100)]
    bucket.delete([found.key for found in bucket.list(prefix)])
    assert next(bucket.list(prefix), None) is None


def test_large_files_are_stored_in_parts_and_measured_on_the_way(bucket, task_id):
    content = os.urandom(MIB) * 20 + b"end"
    key = f"{TASKS.place(task_id).prefix}large"
    stored = bucket.put_file(key, io.BytesIO(content))
    assert (stored.size, stored.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert bucket.get(key) == content
    assert b"".join(bucket.stream(key, 16 * MIB - 1, 3)) == content[16 * MIB - 1 : 16 * MIB + 2]
    assert bucket.put_file(f"{key}-empty", io.BytesIO()).size == 0
    assert bucket.get(f"{key}-empty") == b""


def test_a_file_that_cannot_be_read_to_its_end_is_not_stored(bucket, task_id):
    class Broken(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            if self.tell() > 10 * MIB:
                raise OSError("the disk broke")
            return super().read(count)

    key = f"{TASKS.place(task_id).prefix}broken"
    with pytest.raises(OSError, match="the disk broke"):
        bucket.put_file(key, Broken(bytes(40 * MIB)))
    assert bucket.stat(key) is None


def test_every_failure_is_a_sentence_without_keys(services):
    settings = services
    free_port = free_ports(1)
    access_key, secret_key = settings.s3_credentials()

    def answer(**changes: object) -> str:
        with pytest.raises(BucketUnavailable) as refused:
            Bucket(settings.model_copy(update=changes)).get("x")
        text = f"{refused.value} {refused.value.__cause__} {refused.value.details}"
        assert access_key not in text
        assert secret_key not in text
        return refused.value.message

    given = {"s3_endpoint": settings.s3_target, "s3_access_key": access_key}
    wrong = settings.model_validate({"s3_secret_key": "wrong-wrong"}).s3_secret_key
    assert "refused the keys" in answer(**given, s3_secret_key=wrong)
    assert "has no bucket 'nothing'" in answer(s3_bucket="nothing")
    assert "does not answer" in answer(s3_port=free_port)
    assert "sandbox up" in answer(s3_port=free_port)
    with pytest.raises(BucketUnavailable, match="does not answer"):
        Bucket(settings.model_copy(update={"s3_port": free_port})).put("x", b"", if_absent=True)
    with pytest.raises(HostNotReady):
        Bucket(settings.model_copy(update={"s3_endpoint": "http://x/y", "s3_access_key": "a", "s3_secret_key": wrong}))


@pytest.mark.parametrize("call", ["get", "put", "put if absent", "put file", "stat", "list", "delete"])
def test_no_answer_says_how_long_a_call_takes(
    services: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A service that is busy names a time to come back, which nobody here waits for; nor is it asked without end."""
    asked: list[str] = []
    slept: list[float] = []

    class Busy(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline()
            if self.raw_requestline and self.parse_request():
                asked.append(self.command)
                self.send_response(503)
                self.send_header("Retry-After", "3600")
                self.send_header("Content-Length", "0")
                self.send_header("Connection", "close")
                self.end_headers()
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
        access_key, _ = services.s3_credentials()
        settings = services.model_copy(
            update={"s3_endpoint": f"127.0.0.1:{server.server_port}", "s3_access_key": access_key}
        )
        settings.s3_secret_key = settings.model_validate({"s3_secret_key": "x" * 20}).s3_secret_key
        busy = Bucket(settings)
        (tmp_path / "file").write_bytes(b"x" * 100)
        calls: dict[str, Callable[[], object]] = {
            "get": lambda: busy.get("x"),
            "put": lambda: busy.put("x", b"1"),
            "put if absent": lambda: busy.put("x", b"1", if_absent=True),
            "put file": lambda: busy.put_file("x", io.BytesIO(b"1")),
            "stat": lambda: busy.stat("x"),
            "list": lambda: list(busy.list("x")),
            "delete": lambda: busy.delete(["x"]),
        }
        try:
            with pytest.raises(BucketUnavailable):
                calls[call]()
        finally:
            server.shutdown()
            thread.join()
    assert 1 <= len(asked) <= 5
    assert sum(slept) < 10


def test_an_object_that_comes_byte_by_byte_is_given_up(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Dripping:
        closed = False

        def read1(self, _count: int) -> bytes:
            now[0] += 25
            return b"x"

        def close(self) -> None:
            self.closed = True

        def release_conn(self) -> None:
            return

    monkeypatch.setattr("storage.bucket.time.monotonic", lambda: now[0])
    response: Any = Dripping()
    with pytest.raises(BucketUnavailable):
        next(ObjectStream(response, bucket._answers))
    assert response.closed
    assert now[0] < 600


def test_what_is_stored_is_there_after_the_server_was_killed(tmp_path: Path):
    with S3Server(tmp_path) as server:
        bucket = Bucket(server.settings)
        for number in range(50):
            bucket.put(f"k/{number:02d}", b"small" * number, if_absent=True)
        bucket.put("k/large", b"large" * MIB)
        server.kill()
        server.start()
        assert [len(bucket.get(f"k/{number:02d}")) for number in range(50)] == [5 * number for number in range(50)]
        assert bucket.get("k/large") == b"large" * MIB
        assert not bucket.put("k/07", b"again", if_absent=True)


# --- artifacts and records


def test_artifacts_are_redacted_listed_and_read_back(bucket, task_id, tmp_path):
    redactor = Redactor({"TOKEN": "tok-12345"})
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "tok-12345.txt").write_bytes(b"x" * (MIB - 4) + b"tok-12345" + b"y" * MIB)
    (tmp_path / "plain.patch").write_bytes(b"diff --git")
    names = names_of(["deep/tok-12345.txt", "plain.patch"], task_id, redactor)
    stored = []
    for path, name in names.items():
        with open_regular(tmp_path, path) as file:
            stored.append(artifacts.store(bucket, TASKS.place(task_id), name, file, path=path, redactor=redactor))
    stored.append(artifacts.store(bucket, TASKS.place(task_id), "metadata.json", b"{}"))
    assert artifacts.index(bucket, TASKS.place(task_id)) == []
    artifacts.write_index(bucket, TASKS.place(task_id), stored)
    secret, patch, metadata = artifacts.index(bucket, TASKS.place(task_id))
    assert secret.name == secret.path == "deep/[redacted:TOKEN].txt"
    assert secret.redacted
    assert (patch.name, patch.content_type, patch.redacted) == ("plain.patch", "text/x-diff", False)
    assert (metadata.path, metadata.content_type, metadata.size_bytes) == ("metadata.json", "application/json", 2)
    for artifact in (secret, patch, metadata):
        content = b"".join(artifacts.open_stream(bucket, TASKS.place(task_id), artifact.name))
        assert len(content) == artifact.size_bytes
        assert hashlib.sha256(content).hexdigest() == artifact.sha256
        assert b"tok-12345" not in content
    assert b"".join(artifacts.open_stream(bucket, TASKS.place(task_id), "plain.patch", 5, 3)) == b"--g"
    with pytest.raises(ArtifactNotFound):
        artifacts.open_stream(bucket, TASKS.place(task_id), "nothing")


def test_final_records_are_read_back(bucket, task_id):
    assert records.read_record(bucket, TASKS.place(task_id)) is None
    records.write_record(bucket, TASKS.place(task_id), {"state": "completed", "text": "é"})
    assert records.read_record(bucket, TASKS.place(task_id)) == {"state": "completed", "text": "é"}
