"""URLs and forms of the bucket, signed here, by which a client reads or writes one object without keys of its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlsplit

from minio import Minio
from minio.datatypes import PostPolicy

from foundation.errors import HostNotReady
from foundation.settings import Settings

#: How long a signed URL or form can be used.
VALID_SECONDS = 3600


@dataclass(frozen=True)
class Form:
    """A form that uploads one object: the fields go before the file, whose field is called ``file``."""

    url: str
    fields: dict[str, str]


class Presigner:
    """Signs for the address at which clients reach the bucket. Nothing is asked of the service."""

    def __init__(self, settings: Settings) -> None:
        access_key, secret_key = settings.s3_credentials()
        address = urlsplit(settings.s3_public_url) if settings.s3_public_url else None
        self._bucket = settings.s3_bucket
        try:
            self._client = Minio(
                endpoint=address.netloc if address else settings.s3_target,
                access_key=access_key,
                secret_key=secret_key,
                secure=address.scheme == "https" if address else settings.s3_secure,
                # Named, it need not be asked for.
                region=settings.s3_region,
            )
        except ValueError as error:
            raise HostNotReady(f"TASKYARD_S3_PUBLIC_URL is no address of an S3 service: {error}") from None

    def url(self, key: str, *, name: str, content_type: str) -> str:
        """A URL that reads one object, as a file of this name. It holds for ``VALID_SECONDS``."""
        return self._client.get_presigned_url(
            method="GET",
            bucket_name=self._bucket,
            object_name=key,
            expires=timedelta(seconds=VALID_SECONDS),
            response_headers={
                # What an agent wrote is never to be shown as a page of the bucket's host.
                "response-content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
                "response-content-type": content_type,
            },
        )

    def form(self, key: str, *, content_type: str, most_bytes: int) -> Form:
        """A form that writes one object of at most ``most_bytes``. It holds for ``VALID_SECONDS``."""
        policy = PostPolicy(self._bucket, datetime.now(UTC) + timedelta(seconds=VALID_SECONDS))
        policy.add_equals_condition("key", key)
        policy.add_equals_condition("Content-Type", content_type)
        policy.add_content_length_range_condition(0, most_bytes)
        signed = self._client.presigned_post_policy(policy)
        return Form(self._bucket_url(), {"key": key, "Content-Type": content_type, **signed})

    def _bucket_url(self) -> str:
        """Where forms go. The client alone knows whether the bucket stands in the host or in the path."""
        url = self._client.get_presigned_url(method="GET", bucket_name=self._bucket, object_name="x")
        return url.partition("?")[0].removesuffix("x")
