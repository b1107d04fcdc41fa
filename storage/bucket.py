"""The bucket: a thin, typed face of the S3 client whose every failure is a sentence."""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import BinaryIO, Protocol, Self, cast

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error
from urllib3.exceptions import HTTPError, MaxRetryError

from foundation.errors import BucketUnavailable, HostNotReady, NotFound
from foundation.settings import Settings
from storage import retention

_CHUNK_BYTES = 256 * 1024
_PART_BYTES = 8 * 1024 * 1024
_CONNECT_SECONDS = 3
_SILENCE_SECONDS = 30
# An object comes at this rate at least, beside the time that nothing may come: one byte in half a minute is no answer.
_SLOWEST_BYTES_PER_SECOND = 16 * 1024
_PROBE_KEY = "probes/if-none-match"
_CONDITIONAL_TRIES = 5
_OK = 200
_PRECONDITION_FAILED = 412
_CONDITIONAL_CONFLICT = 409

_ABSENT = frozenset({"NoSuchKey", "NoSuchObject", "ResourceNotFound"})
_REFUSED = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"})
_ALREADY_THERE = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})

# The transport warns of each repeated try with its URL, which is signed; the final failure becomes an error of ours.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@dataclass(frozen=True)
class ObjectInfo:
    """What the bucket says of one object: its key, its size in bytes and its content type (not in listings)."""

    key: str
    size: int
    content_type: str | None = None


@dataclass(frozen=True)
class FileDigest:
    """What was stored of a file: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str


class ObjectStore(Protocol):
    """What the run log, artifacts and records ask of a bucket. All methods may raise BucketUnavailable."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str = ...) -> bool:
        """Store ``data``; with ``if_absent`` only when the key holds nothing yet. False: it held something."""

    def get(self, key: str) -> bytes | None:
        """Content of an object, or None when there is none."""

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects below a prefix in the order of their keys, lazily, from the first key after ``start_after``."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are deleted already."""


class Bucket:
    """One bucket of one S3 service. Thread-safe. Every method but the constructor may raise BucketUnavailable.

    What runs have left in it is deleted ``retention_days`` after it was stored; 0: never.
    """

    def __init__(self, settings: Settings) -> None:
        access_key, secret_key = settings.s3_credentials()
        self.name = settings.s3_bucket
        self._target = settings.s3_target
        self._region = settings.s3_region
        self._embedded = settings.embedded_bucket
        self.retention_days = settings.retention_days
        # A restart of the embedded server takes about a second: refused connections are tried again for about three.
        # How long to wait between tries is decided here; what an answer says of it may be an hour, or a year.
        self._http = urllib3.PoolManager(
            maxsize=16,
            timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_SILENCE_SECONDS),
            retries=urllib3.Retry(
                total=4,
                redirect=2,
                backoff_factor=0.2,
                status_forcelist=(500, 502, 503, 504),
                raise_on_status=False,
                respect_retry_after_header=False,
            ),
        )
        try:
            self._client = Minio(
                endpoint=self._target,
                access_key=access_key,
                secret_key=secret_key,
                secure=settings.s3_secure,
                region=self._region,
                http_client=self._http,
            )
        except ValueError as error:
            raise HostNotReady(
                f"TASKYARD_S3_ENDPOINT '{self._target}' is no host:port of an S3 service: {error}"
            ) from None

    def ensure(self) -> None:
        """Make the bucket if it does not exist, give it its rules, and check that the service keeps conditional writes.

        Raises HostNotReady when the service ignores ``If-None-Match``: two writers could then overwrite each other.
        """
        with self._answers():
            if not self._client.bucket_exists(bucket_name=self.name):
                self._make()
            retention.keep_rules(self._client, self.name, self.retention_days)
        self.put(_PROBE_KEY, b"1", if_absent=True)
        if self.put(_PROBE_KEY, b"2", if_absent=True):
            raise HostNotReady(
                f"The S3 service at {self._target} ignores 'If-None-Match: *', which keeps run logs whole; "
                "use one that supports conditional writes (SeaweedFS 4, MinIO, AWS S3)"
            )

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, content_type: str = "application/octet-stream"
    ) -> bool:
        """Store ``data``. With ``if_absent``, only when the key holds nothing yet, else returns False.

        False can also mean that this very call stored it: the answer was lost and the try repeated. Whoever must know
        reads the object and looks for its own mark.
        """
        if if_absent:
            return self._put_if_absent(key, data, content_type)
        with self._answers():
            self._client.put_object(
                bucket_name=self.name,
                object_name=key,
                data=io.BytesIO(data),
                length=len(data),
                content_type=content_type,
            )
        return True

    def put_file(self, key: str, file: BinaryIO, *, content_type: str = "application/octet-stream") -> FileDigest:
        """Store what ``file`` gives until its end, in parts, reading it once. Its own errors pass through."""
        measured = _Measured(file)
        with self._answers():
            self._client.put_object(
                bucket_name=self.name,
                object_name=key,
                data=cast("BinaryIO", measured),
                length=-1,
                part_size=_PART_BYTES,
                num_parallel_uploads=1,
                content_type=content_type,
            )
        return measured.digest()

    def get(self, key: str) -> bytes | None:
        """Content of an object, or None when there is none."""
        try:
            return b"".join(self.stream(key))
        except NotFound:
            return None

    def stream(self, key: str, offset: int = 0, length: int | None = None) -> ObjectStream:
        """Content of an object from byte ``offset`` on, at most ``length`` bytes, in chunks.

        The object is opened before this returns: raises NotFound here, BucketUnavailable here or while reading.
        """
        if length == 0:
            return ObjectStream(None, self._answers)
        try:
            with self._answers():
                response = self._client.get_object(
                    bucket_name=self.name, object_name=key, offset=offset, length=length or 0
                )
        except _RangeOutside:
            return ObjectStream(None, self._answers)
        return ObjectStream(response, self._answers)

    def stat(self, key: str) -> ObjectInfo | None:
        """Size and content type of an object, or None when there is none."""
        try:
            with self._answers():
                found = self._client.stat_object(bucket_name=self.name, object_name=key)
        except NotFound:
            return None
        return ObjectInfo(key, found.size or 0, found.content_type)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects below a prefix in the order of their keys, lazily, from the first key after ``start_after``."""
        with self._answers():
            for found in self._client.list_objects(
                bucket_name=self.name, prefix=prefix, recursive=True, start_after=start_after
            ):
                yield ObjectInfo(found.object_name, found.size or 0)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are deleted already."""
        with self._answers():
            for error in self._client.remove_objects(
                bucket_name=self.name, delete_object_list=(DeleteObject(name=key) for key in keys)
            ):
                raise BucketUnavailable(f"The bucket at {self._target} did not delete '{error.name}': {error.message}")

    def _make(self) -> None:
        try:
            self._client.make_bucket(bucket_name=self.name, location=self._region)
        except S3Error as error:
            if error.code not in _ALREADY_THERE:
                raise

    def _put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        # The client's put_object has no way to send If-None-Match; a URL signed by it takes any further header.
        headers = {"If-None-Match": "*", "Content-Type": content_type}
        for attempt in range(_CONDITIONAL_TRIES):
            with self._answers():
                url = self._client.get_presigned_url(
                    method="PUT", bucket_name=self.name, object_name=key, expires=timedelta(minutes=5)
                )
                response = self._http.request("PUT", url, body=data, headers=headers)
            if response.status == _OK:
                return True
            if response.status == _PRECONDITION_FAILED:
                return False
            if response.status != _CONDITIONAL_CONFLICT:
                raise self._refusal_of_put(response)
            time.sleep(0.05 * attempt)
        raise BucketUnavailable(
            f"The bucket at {self._target} keeps answering that '{key}' is being written; try again"
        )

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turn what the client raises into the project's errors.

        Transport errors are not chained: their text holds the signed URL, and a chain would carry it into the history.
        """
        try:
            yield
        except S3Error as error:
            raise self._refusal(error.code or "", error.message or "") from None
        except InvalidResponseError:
            raise BucketUnavailable(
                f"What listens at {self._target} is no S3 service; check TASKYARD_S3_ENDPOINT"
            ) from None
        except MaxRetryError as error:
            raise self._unreachable(error.reason or error) from None
        except (MinioException, HTTPError) as error:
            raise self._unreachable(error) from None

    def _refusal(self, code: str, message: str) -> Exception:
        if code in _ABSENT:
            return NotFound("The bucket holds no such object")
        if code == "InvalidRange":
            return _RangeOutside()
        if code == "NoSuchBucket":
            return BucketUnavailable(
                f"The S3 service at {self._target} has no bucket '{self.name}'; "
                "create it, or start the worker, which makes it"
            )
        if code in _REFUSED:
            return BucketUnavailable(
                f"The S3 service at {self._target} refused the keys ({code}); "
                "check TASKYARD_S3_ACCESS_KEY and TASKYARD_S3_SECRET_KEY"
            )
        if code == "RequestTimeTooSkewed":
            return BucketUnavailable(f"The clocks of this host and of {self._target} differ too much; set them")
        return BucketUnavailable(f"The S3 service at {self._target} answered {code}: {message}")

    def _refusal_of_put(self, response: urllib3.BaseHTTPResponse) -> Exception:
        if not response.data:
            return BucketUnavailable(f"The S3 service at {self._target} answered with status {response.status}")
        try:
            error = S3Error.fromxml(response)
        except (ValueError, SyntaxError):
            return BucketUnavailable(f"What listens at {self._target} is no S3 service; check TASKYARD_S3_ENDPOINT")
        return self._refusal(error.code or "", error.message or "")

    def _unreachable(self, error: Exception) -> BucketUnavailable:
        cure = "start it with 'sandbox up'" if self._embedded else "check TASKYARD_S3_ENDPOINT and the network"
        return BucketUnavailable(f"The bucket at {self._target} does not answer ({type(error).__name__}); {cure}")


class ObjectStream:
    """Content of an object in chunks, read as it is asked for. ``close`` gives the connection back; so does its end."""

    def __init__(
        self, response: urllib3.BaseHTTPResponse | None, answers: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._response = response
        self._answers = answers
        self._waited = 0.0
        self._done = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        chunk = b""
        try:
            if self._response is not None:
                with self._answers():
                    chunk = self._chunk(self._response)
        finally:
            if not chunk:
                self.close()
        if not chunk:
            raise StopIteration
        return chunk

    def _chunk(self, response: urllib3.BaseHTTPResponse) -> bytes:
        chunk = bytearray()
        while len(chunk) < _CHUNK_BYTES:
            began = time.monotonic()
            piece = response.read1(_CHUNK_BYTES - len(chunk))
            self._waited += time.monotonic() - began
            if not piece:
                break
            chunk += piece
            self._done += len(piece)
            if self._waited > 2 * _SILENCE_SECONDS + self._done / _SLOWEST_BYTES_PER_SECOND:
                raise urllib3.exceptions.TimeoutError
        return bytes(chunk)

    def close(self) -> None:
        """Read no further: a connection with something left to read is closed."""
        response, self._response = self._response, None
        if response is not None:
            response.close()
            response.release_conn()


class _RangeOutside(Exception):
    """The asked range begins behind the object's end."""


class _Measured:
    """A file that counts and digests what is read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size = 0

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        self._sha256.update(data)
        self._size += len(data)
        return data

    def digest(self) -> FileDigest:
        return FileDigest(self._size, self._sha256.hexdigest())
